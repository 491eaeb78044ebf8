"""Limits on the size of a JSON text and of its document."""

from itertools import accumulate
from types import MappingProxyType
from typing import Any, Final

from shared.bounds import MAX_NESTING, MAX_VALUES
from shared.errors import ServiceError
from shared.protojson.refusal import RefusedError, refusal

__all__ = [
    "count_colons",
    "count_members",
    "require_few_levels",
    "require_few_values",
    "too_many_values",
]

_STEPS: Final = MappingProxyType({ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1})
"""Change of the level at a bracket."""
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in _STEPS)
_MAX_QUOTES: Final = 4 * MAX_VALUES
"""Quotes in MAX_VALUES members, each of which has a name and a string."""

Surveyed = tuple[int, int]
"""Numbers of members and of values."""


def require_few_values(data: bytes) -> None:
    """Raise INVALID_FIELDS for a text with too many values, before it is parsed."""
    if not _has_many(data):
        return
    plain = _unescaped(data)
    if plain.count(b'"') > _MAX_QUOTES or _has_many(_outside_strings(plain)):
        raise too_many_values()


def _has_many(data: bytes) -> bool:
    """Return whether a text has too many opening brackets or commas.

    Each bracket begins a value, except that of the document itself.
    """
    brackets = data.count(b"{") + data.count(b"[")
    return brackets > MAX_VALUES + 1 or data.count(b",") > MAX_VALUES


def require_few_levels(data: bytes) -> None:
    """Raise INVALID_FIELDS for a text with too many levels, before `json` recurses into them.

    The parsed document lacks the values of repeated members, except the last one.
    """
    brackets = _outside_strings(_unescaped(data)).translate(None, _NO_BRACKETS)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_NESTING:
        raise _too_deep()


def count_members(document: Any) -> int:
    """Return the number of members of all objects; INVALID_FIELDS beyond a limit."""
    return _survey(document, 1)[0] if isinstance(document, dict | list) else 0


def _survey(value: Any, level: int) -> Surveyed:
    """Return the numbers of members and values; INVALID_FIELDS for too many levels or values."""
    if level > MAX_NESTING:
        raise _too_deep()
    values = len(value)
    if values > MAX_VALUES:
        raise too_many_values()
    if type(value) is dict:
        members, value = values, value.values()
    else:
        members = 0
    for each in value:
        kind = type(each)
        if kind is dict or kind is list:
            more, inside = _survey(each, level + 1)
            members += more
            values += inside
            if values > MAX_VALUES:
                raise too_many_values()
    return members, values


def _too_deep() -> ServiceError:
    return refusal(RefusedError("nesting", f"must have at most {MAX_NESTING} levels").found)


def too_many_values() -> ServiceError:
    """Return the error INVALID_FIELDS for more than 20,000 values."""
    return refusal(
        RefusedError("max_values", f"must have at most {MAX_VALUES} values in all").found
    )


def count_colons(data: bytes) -> int:
    """Return the number of colons outside strings."""
    return _outside_strings(_unescaped(data)).count(b":")


def _unescaped(data: bytes) -> bytes:
    """Return a JSON text without escaped quotes."""
    return data.replace(b"\\\\", b"").replace(b'\\"', b"")


def _outside_strings(data: bytes) -> bytes:
    """Return a JSON text with its strings removed."""
    return b"".join(data.split(b'"')[::2])
