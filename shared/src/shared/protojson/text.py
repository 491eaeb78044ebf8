"""Parse JSON text (RFC 8259), with limits on its size that are checked first."""

import json
from collections.abc import Iterator
from typing import Any

import orjson

from shared.bounds import MAX_NESTING, MAX_VALUES
from shared.errors import Code, ServiceError, shown_name
from shared.protojson.refusal import Found, RefusedError, full, refusal

__all__ = ["parse_json", "read_json", "require_unique"]

Surveyed = tuple[int, int]
"""Numbers of members and of values."""


def read_json(data: bytes) -> Any:
    """Return the value of a JSON text. Raises INVALID_ARGUMENT:

    - MALFORMED_JSON if it is not JSON;
    - INVALID_FIELDS if it has more than 100 levels, more than 20,000 values, or an object with two
      members of the same name (RFC 7493, section 2.3).
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
    if data.count(b"{") + data.count(b"[") > MAX_VALUES:
        bare = _outside_strings(data)
        if bare.count(b"{") + bare.count(b"[") > MAX_VALUES:
            raise _too_many_values()
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise ServiceError(
            Code.INVALID_ARGUMENT, "MALFORMED_JSON", "The text is not valid JSON."
        ) from None
    return document, _members(document)


def _members(document: Any) -> int:
    return _survey(document, 1)[0] if isinstance(document, dict | list) else 0


def _survey(value: Any, level: int) -> Surveyed:
    """Return the numbers of members and values; INVALID_FIELDS for too many levels or values."""
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
    """Raise INVALID_FIELDS if the text has more members than the parsed document.

    The number of colons outside strings is the number of members in the text. Most texts have no
    other colons, so that they are not scanned for strings.
    """
    if data.count(b":") == members or (given := _outside_strings(data).count(b":")) == members:
        return
    raise _too_many_values() if given > MAX_VALUES else refusal(_duplicates(data))


def _outside_strings(data: bytes) -> bytes:
    """Return a JSON text with its strings removed."""
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(plain.split(b'"')[::2])


class _Object(dict[str, Any]):
    """An object, with the names that occur more than once."""

    def __init__(self, members: list[tuple[str, Any]]) -> None:
        super().__init__(members)
        self.repeated: list[str] = []
        if len(self) < len(members):
            seen: set[str] = set()
            self.repeated = [name for name, _ in members if name in seen or seen.add(name)]  # type: ignore[func-returns-value]  # `add` returns None


def _duplicates(data: bytes) -> Found:
    """Return a violation for each repeated member, 21 at most."""
    document = json.loads(data, object_pairs_hook=_Object, parse_int=str, parse_float=str)
    found: Found = []
    for path in _repeated(document, ""):
        found.append((path, "duplicate", "given more than once"))
        if full(found):
            break
    return found


def _repeated(value: Any, path: str) -> Iterator[str]:
    """Yield the path of each repeated member."""
    if isinstance(value, _Object):
        yield from (_member(path, name) for name in value.repeated)
        for name, each in value.items():
            if isinstance(each, list | _Object):
                yield from _repeated(each, _member(path, name))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            if isinstance(each, list | _Object):
                yield from _repeated(each, f"{path}[{index}]")


def _member(path: str, name: str) -> str:
    return f"{path}.{shown_name(name)}" if path else shown_name(name)
