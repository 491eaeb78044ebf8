"""The target of a request: its path and its query (RFC 3986)."""

import re
from typing import Final
from urllib.parse import parse_qsl, unquote_to_bytes

from gateway.problems import HttpError
from postbus import reasons

__all__ = [
    "MAX_PARAMETERS",
    "has_bad_escape",
    "normalized_path",
    "path_value",
    "query_parameters",
    "without_needless_escapes",
]

MAX_PARAMETERS: Final = 200
"""Most parameters of a query."""
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_NEEDLESS_ESCAPE: Final = re.compile(
    rb"%(?:2[DdEe]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|5[Ff]|7[Ee])"
)
"""Escapes of the unreserved characters: letters, digits and `-._~`."""


def has_bad_escape(text: bytes) -> bool:
    """Return whether a percent sign is not followed by two hexadecimal digits."""
    return b"%" in text and _BAD_ESCAPE.search(text) is not None


def without_needless_escapes(path: bytes) -> bytes:
    """Return a path with its unreserved characters decoded: `/v1/%70osts` is `/v1/posts`.

    All other escapes stay (RFC 3986, section 6.2.2.2).
    """
    return _NEEDLESS_ESCAPE.sub(lambda escape: unquote_to_bytes(escape[0]), path)


def normalized_path(path: bytes) -> bytes:
    """Return a path with escapes `without_needless_escapes`; 400 if an escape is malformed."""
    if has_bad_escape(path):
        raise _malformed("The path has a malformed percent-encoding.")
    return without_needless_escapes(path)


def path_value(segment: str) -> str:
    """Return the text of a path parameter; 400 unless it is UTF-8."""
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise _malformed("The path is not UTF-8.") from None


def query_parameters(query: bytes) -> list[tuple[str, str]]:
    """Return the parameters of a query in order; 400 if it is malformed or has too many."""
    if not query:
        return []
    if has_bad_escape(query):
        raise _malformed("The query has a malformed percent-encoding.")
    try:
        return parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_PARAMETERS,
        )
    except UnicodeDecodeError:
        raise _malformed("The query is not UTF-8.") from None
    except ValueError:
        raise _malformed(f"The query has more than {MAX_PARAMETERS} parameters.") from None


def _malformed(message: str) -> HttpError:
    return HttpError(reasons.MALFORMED_URL, message)
