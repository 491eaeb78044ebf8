"""Parse JSON text (RFC 8259), with limits on its size that are checked first."""

from typing import Any

import orjson

from shared.bounds import MAX_VALUES
from shared.protojson.refusal import refusal
from shared.protojson.text_limits import (
    count_colons,
    count_members,
    require_few_levels,
    require_few_values,
    too_many_values,
)
from shared.protojson.text_violations import repeated_members, unreadable

__all__ = ["parse_json", "read_json", "require_unique"]


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
    _require_unique(data, count_members(document))


def _parsed(data: bytes) -> tuple[Any, int]:
    """Return the value, and the number of members of all its objects."""
    require_few_values(data)
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise unreadable(data) from None
    return document, count_members(document)


def _require_unique(data: bytes, members: int) -> None:
    """Raise INVALID_FIELDS if the text has more members than the parsed document.

    The number of colons outside strings is the number of members in the text. Most texts have no
    other colons, so that they are not scanned for strings.
    """
    if data.count(b":") == members or (given := count_colons(data)) == members:
        return
    if given > MAX_VALUES:
        raise too_many_values()
    require_few_levels(data)
    raise refusal(repeated_members(data))
