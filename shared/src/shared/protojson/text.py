"""JSON text (RFC 8259) to a Python value, with bounds that are checked before the work."""

import json
from collections.abc import Iterator
from typing import Any, Final

import orjson

from shared.bounds import MAX_NESTING, MAX_VALUES
from shared.errors import Code, ServiceError, shown_name
from shared.protojson.refusal import Found, RefusedError, full, refusal

__all__ = ["parse_json", "read_json", "require_unique"]

_CONTAINERS: Final = (dict, list)
_MAX_QUOTES: Final = 4 * MAX_VALUES
"""Quotes of MAX_VALUES members, each with a name and a string."""

Surveyed = tuple[int, int]
"""Numbers of members and of values."""


def read_json(data: bytes) -> Any:
    """Return the value of a JSON text. Raises INVALID_ARGUMENT:

    - MALFORMED_JSON if it is not JSON;
    - INVALID_FIELDS if it has more than 100 levels, more than 20,000 values, or an object with two
      members of one name (RFC 7493, section 2.3).
    """
    document, members = _parsed(data)
    _require_unique(data, members)
    return document


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text as `read_json` does; of equal members the last one counts.

    For a caller that needs the document to report its duplicates, by `require_unique`.
    """
    return _parsed(data)[0]


def require_unique(data: bytes, document: Any) -> None:
    """Raise INVALID_FIELDS if an object of a JSON text has two members of one name.

    `document` is the result of `parse_json(data)`.
    """
    _require_unique(data, _members(document))


def _parsed(data: bytes) -> tuple[Any, int]:
    """Return the value, and the number of members of all its objects."""
    _require_few_values(data)
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise ServiceError(
            Code.INVALID_ARGUMENT, "MALFORMED_JSON", "The text is not valid JSON."
        ) from None
    return document, _members(document)


def _require_few_values(data: bytes) -> None:
    """Refuse a text with more values than there may be, before any is made."""
    if not _has_many(data):
        return
    plain = _unescaped(data)
    if plain.count(b'"') > _MAX_QUOTES or _has_many(_outside_strings(plain)):
        raise _too_many_values()


def _has_many(data: bytes) -> bool:
    """Return whether a text without strings has more than MAX_VALUES values, by its separators."""
    return data.count(b"{") + data.count(b"[") > MAX_VALUES or data.count(b",") > MAX_VALUES


def _members(document: Any) -> int:
    return _survey(document, 1)[0] if isinstance(document, dict | list) else 0


def _survey(value: Any, level: int) -> Surveyed:
    """Count members and values; refuse more levels or values than there may be."""
    if level > MAX_NESTING:
        raise refusal(RefusedError("nesting", f"must have at most {MAX_NESTING} levels").found)
    values = len(value)
    if values > MAX_VALUES:
        raise _too_many_values()
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
                raise _too_many_values()
    return members, values


def _too_many_values() -> ServiceError:
    return refusal(
        RefusedError("max_values", f"must have at most {MAX_VALUES} values in all").found
    )


def _require_unique(data: bytes, members: int) -> None:
    """Compare the number of members read with that of the colons, which most texts have only
    between names and values; only a text with other numbers is read again.
    """
    if data.count(b":") == members or (given := _colons(data)) == members:
        return
    raise _too_many_values() if given > MAX_VALUES else refusal(_duplicates(data))


def _colons(data: bytes) -> int:
    return _outside_strings(_unescaped(data)).count(b":")


def _unescaped(data: bytes) -> bytes:
    """Return a JSON text without escaped quotes."""
    return data.replace(b"\\\\", b"").replace(b'\\"', b"")


def _outside_strings(data: bytes) -> bytes:
    """Return a JSON text without the contents of its strings, none with an escaped quote."""
    return b"".join(data.split(b'"')[::2])


class _Repeating(dict[str, Any]):
    """An object that has members of one name."""

    def __init__(self, members: list[tuple[str, Any]]) -> None:
        super().__init__(members)
        seen: set[str] = set()
        self.names = [name for name, _ in members if name in seen or seen.add(name)]  # type: ignore[func-returns-value]  # adds, and is None


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(members)
    return document if len(document) == len(members) else _Repeating(members)


def _duplicates(data: bytes) -> Found:
    """Return a violation for each repeated member, up to one more than are reported."""
    document = json.loads(data, object_pairs_hook=_object, parse_int=str, parse_float=str)
    found: Found = []
    for path in _repeated(document, ""):
        found.append((path, "duplicate", "given more than once"))
        if full(found):
            break
    return found


def _repeated(value: Any, path: str) -> Iterator[str]:
    """Yield the path of each repeated member."""
    if isinstance(value, dict):
        if isinstance(value, _Repeating):
            yield from (_member(path, name) for name in value.names)
        for name, each in value.items():
            if each and isinstance(each, _CONTAINERS):
                yield from _repeated(each, _member(path, name))
    else:
        for index, each in enumerate(value):
            if each and isinstance(each, _CONTAINERS):
                yield from _repeated(each, f"{path}[{index}]")


def _member(path: str, name: str) -> str:
    return f"{path}.{shown_name(name)}" if path else shown_name(name)
