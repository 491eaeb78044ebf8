"""Parse JSON text (RFC 8259), with limits on its size that are checked first."""

import json
import math
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from types import MappingProxyType
from typing import Any, Final, NoReturn

import orjson

from shared.bounds import MAX_NESTING, MAX_VALUES
from shared.errors import MAX_VIOLATIONS, Code, ServiceError, shown_name
from shared.protojson.refusal import Found, RefusedError, full, refusal

__all__ = ["parse_json", "read_json", "require_unique"]

_STEPS: Final = MappingProxyType({ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1})
"""Change of the level at a bracket."""
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in _STEPS)
_MAX_QUOTES: Final = 4 * MAX_VALUES
"""Quotes in MAX_VALUES members, each of which has a name and a string."""

Surveyed = tuple[int, int]
"""Numbers of members and of values."""


def read_json(data: bytes) -> Any:
    """Return the value of a JSON text. Raises INVALID_ARGUMENT:

    - MALFORMED_JSON if it is not JSON;
    - INVALID_FIELDS if it has more than 100 levels, more than 20,000 values, a number beyond the
      range of a double, a string with a lone surrogate, or an object with two members of the same
      name (RFC 7493, sections 2.1 to 2.3).
    """
    document, members = _parsed(data)
    _require_unique(data, members)
    return document


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text as `read_json`, but accept members of the same name.

    The last one counts. The caller checks them later by `require_unique`.
    """
    return _parsed(data)[0]


def require_unique(data: bytes, document: Any) -> None:
    """Raise INVALID_FIELDS if an object of a JSON text has two members of the same name.

    `document` is the result of `parse_json(data)`.
    """
    _require_unique(data, _members(document))


def _parsed(data: bytes) -> tuple[Any, int]:
    """Return the value, and the number of members of all its objects."""
    _require_few_values(data)
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise _unreadable(data) from None
    return document, _members(document)


def _unreadable(data: bytes) -> ServiceError:
    """Return the error of a text that orjson refuses: not all of these are malformed."""
    _require_few_levels(data)
    try:
        document = json.loads(
            data.decode(),
            parse_int=float,
            parse_constant=_refuse_constant,
            object_pairs_hook=_Members,
        )
        faults = list(islice(_faults(document, ""), MAX_VIOLATIONS + 1))
    except ValueError:  # of the syntax, or not UTF-8
        faults = []
    if faults:
        return refusal(faults)
    return ServiceError(Code.INVALID_ARGUMENT, "MALFORMED_JSON", "The text is not valid JSON.")


class _Members(tuple[tuple[str, Any], ...]):
    """All members of an object; its construction needs no Python code."""

    __slots__ = ()


_NESTED: Final = (list, _Members)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are not JSON


def _faults(value: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Yield a violation for each number, string and name that orjson refuses."""
    if (fault := _fault_of(value)) is not None:
        yield path, *fault
    elif type(value) is list:
        for index, each in enumerate(value):
            if each and (type(each) in _NESTED or _fault_of(each) is not None):
                yield from _faults(each, f"{path}[{index}]")
    elif type(value) is _Members:
        for name, each in value:
            if (fault := _fault_of(name)) is not None:
                yield _member(path, name), *fault
            yield from _faults(each, _member(path, name))


def _member(path: str, name: str) -> str:
    return f"{path}.{shown_name(name)}" if path else shown_name(name)


def _fault_of(value: Any) -> tuple[str, str] | None:
    """Return rule and message if orjson refuses a number or a string."""
    if type(value) is float and math.isinf(value):
        return "range", "is too large for 64 bits"
    if type(value) is str and not _is_unicode(value):
        return "format", "must be Unicode text"
    return None


def _is_unicode(text: str) -> bool:
    """Return whether a string has no lone surrogate (RFC 8259, section 8.2)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_few_values(data: bytes) -> None:
    """Raise INVALID_FIELDS for a text with too many values, before it is parsed."""
    if not _has_many(data):
        return
    plain = _unescaped(data)
    if plain.count(b'"') > _MAX_QUOTES or _has_many(_outside_strings(plain)):
        raise _too_many_values()


def _has_many(data: bytes) -> bool:
    """Return whether a text has too many opening brackets or commas.

    Each bracket begins a value, except that of the document itself.
    """
    brackets = data.count(b"{") + data.count(b"[")
    return brackets > MAX_VALUES + 1 or data.count(b",") > MAX_VALUES


def _members(document: Any) -> int:
    return _survey(document, 1)[0] if isinstance(document, dict | list) else 0


def _survey(value: Any, level: int) -> Surveyed:
    """Return the numbers of members and values; INVALID_FIELDS for too many levels or values."""
    if level > MAX_NESTING:
        raise _too_deep()
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


def _too_deep() -> ServiceError:
    return refusal(RefusedError("nesting", f"must have at most {MAX_NESTING} levels").found)


def _too_many_values() -> ServiceError:
    return refusal(
        RefusedError("max_values", f"must have at most {MAX_VALUES} values in all").found
    )


def _require_unique(data: bytes, members: int) -> None:
    """Raise INVALID_FIELDS if the text has more members than the parsed document.

    The number of colons outside strings is the number of members in the text. Most texts have no
    other colons, so that they are not scanned for strings.
    """
    if data.count(b":") == members or (given := _colons(data)) == members:
        return
    if given > MAX_VALUES:
        raise _too_many_values()
    _require_few_levels(data)
    raise refusal(_duplicates(data))


def _require_few_levels(data: bytes) -> None:
    """Raise INVALID_FIELDS for a text with too many levels, before `json` recurses into them.

    The parsed document lacks the values of repeated members, except the last one.
    """
    brackets = _outside_strings(_unescaped(data)).translate(None, _NO_BRACKETS)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_NESTING:
        raise _too_deep()


def _colons(data: bytes) -> int:
    return _outside_strings(_unescaped(data)).count(b":")


def _unescaped(data: bytes) -> bytes:
    """Return a JSON text without escaped quotes."""
    return data.replace(b"\\\\", b"").replace(b'\\"', b"")


def _outside_strings(data: bytes) -> bytes:
    """Return a JSON text with its strings removed."""
    return b"".join(data.split(b'"')[::2])


_Path = tuple[Any, str | int] | None
"""The path of the outer value, and a name or index in it; None for the whole document."""


def _duplicates(data: bytes) -> Found:
    """Return a violation for each repeated member, 21 at most.

    The search ends then, and builds only the paths that it returns: a refusal may cost no more
    than a valid text.
    """
    document = json.loads(data, object_pairs_hook=_Members, parse_int=str, parse_float=str)
    found: Found = []
    _find_duplicates(document, None, found)
    return found


def _find_duplicates(value: Any, path: _Path, found: Found) -> bool:
    """Append a violation for each repeated member in `value`; return whether `found` is full."""
    members: Iterable[tuple[str | int, Any]]
    if type(value) is _Members:
        distinct = dict(value)
        if len(distinct) < len(value) and _note_repeated(value, path, found):
            return True
        members = distinct.items()
    else:
        members = enumerate(value)
    for step, each in members:
        kind = type(each)
        if (
            (kind is _Members or kind is list)
            and each
            and _find_duplicates(each, (path, step), found)
        ):
            return True
    return False


def _note_repeated(members: _Members, path: _Path, found: Found) -> bool:
    seen: set[str] = set()
    for name, _ in members:
        if name in seen:
            found.append((_shown((path, name)), "duplicate", "given more than once"))
            if full(found):
                return True
        seen.add(name)
    return False


def _shown(path: _Path) -> str:
    if path is None:
        return ""
    outer, step = path
    before = _shown(outer)
    if isinstance(step, int):
        return f"{before}[{step}]"
    return f"{before}.{shown_name(step)}" if before else shown_name(step)
