"""The target of a request: its path and its query (RFC 3986)."""

import re
from typing import Final
from urllib.parse import parse_qsl, unquote_to_bytes

from gateway.problems import HttpError
from shared.errors import Code

__all__ = ["MAX_PARAMETERS", "normalized_path", "path_value", "query_parameters"]

MAX_PARAMETERS: Final = 200
"""Parameters of a query; one more is refused."""
_ESCAPE: Final = re.compile(rb"%[0-9A-Fa-f]{2}")
_BROKEN_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_UNRESERVED: Final = re.compile(rb"[A-Za-z0-9._~-]")


def normalized_path(path: bytes) -> bytes:
    """Return the path without escapes of characters that need none; 400 if an escape is malformed.

    `/v1/%70osts` is `/v1/posts` (RFC 3986, section 6.2.2.2). All other escapes stay.
    """
    if b"%" not in path:
        return path
    if _BROKEN_ESCAPE.search(path):
        raise _malformed("The path has a malformed percent-encoding.")
    return _ESCAPE.sub(_without_need, path)


def _without_need(escape: re.Match[bytes]) -> bytes:
    character = unquote_to_bytes(escape[0])
    return character if _UNRESERVED.fullmatch(character) else escape[0]


def path_value(segment: str) -> str:
    """Return the text of a path parameter; 400 unless it is UTF-8."""
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise _malformed("The path is not UTF-8.") from None


def query_parameters(query: bytes) -> list[tuple[str, str]]:
    """Return the parameters of a query in their order; 400 if it is malformed or has too many."""
    if not query:
        return []
    if _BROKEN_ESCAPE.search(query):
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
    return HttpError(400, Code.INVALID_ARGUMENT, "MALFORMED_URL", message)
