"""The fields of a request's head: names, single values and lists, framing and expectations."""

import re
from collections.abc import Iterable
from types import MappingProxyType
from typing import Final

from gateway.problems import HttpError
from postbus import reasons

__all__ = [
    "CHUNKED",
    "FIELD_TEXT",
    "HEAD_BYTES",
    "MAX_FIELDS",
    "TOKEN",
    "FieldLines",
    "joined_values",
    "list_members",
    "malformed",
    "parse_fields",
    "read_content_length",
    "require_continue",
]

HEAD_BYTES: Final = 64 * 1024
"""Size limit of a head: request line and fields with their line ends."""
MAX_FIELDS: Final = 100
"""Most field lines of a head."""
CHUNKED: Final = -1
"""`Head.content_length` of a body with `Transfer-Encoding: chunked`."""

FieldLines = list[tuple[bytes, bytes]]
"""Lower-case names with values, in the order of the head."""

# RFC 9110, RFC 6454, RFC 6455, Fetch and the drafts of Idempotency-Key define these as single
# values; RFC 9112, sections 3.2 and 6.3, Host and Content-Length.
_SINGLETONS: Final = frozenset(
    (
        b"access-control-request-method",
        b"authorization",
        b"content-length",
        b"content-location",
        b"content-range",
        b"content-type",
        b"date",
        b"from",
        b"host",
        b"idempotency-key",
        b"if-modified-since",
        b"if-range",
        b"if-unmodified-since",
        b"max-forwards",
        b"origin",
        b"proxy-authorization",
        b"range",
        b"referer",
        b"request-timeout",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"user-agent",
    )
)
_COMMON_NAMES: Final = (
    b"Accept Accept-Charset Accept-Encoding Accept-Language Access-Control-Request-Headers"
    b" Cache-Control Connection Content-Encoding Cookie DNT Expect Forwarded HTTP2-Settings"
    b" If-Match If-None-Match Keep-Alive Pragma Prefer Priority Sec-CH-UA Sec-CH-UA-Mobile"
    b" Sec-CH-UA-Platform Sec-Fetch-Dest Sec-Fetch-Mode Sec-Fetch-Site Sec-Fetch-User Sec-GPC"
    b" Sec-WebSocket-Extensions Sec-WebSocket-Protocol TE Trailer Transfer-Encoding Traceparent"
    b" Tracestate Upgrade Upgrade-Insecure-Requests Via X-Forwarded-For X-Forwarded-Host"
    b" X-Forwarded-Proto X-Request-ID"
).split()
# A dictionary lookup is faster than a match and a copy for each field.
_NAMES: Final = MappingProxyType(
    {
        spelling: name.lower()
        for name in (*_COMMON_NAMES, *_SINGLETONS)
        for spelling in (name, name.lower(), b"-".join(w.capitalize() for w in name.split(b"-")))
    }
)
TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
"""Pattern of a token (RFC 9110, section 5.6.2)."""
_FIELD_NAME: Final = re.compile(TOKEN)
FIELD_TEXT: Final = bytes((0x09, *range(0x20, 0x7F), *range(0x80, 0x100)))
"""Characters of a field's value (RFC 9110, section 5.5)."""
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")


def parse_fields(lines: Iterable[bytes]) -> FieldLines:
    """Parse field lines (RFC 9112, section 5); HttpError 400."""
    fields: FieldLines = []
    try:
        for line in lines:
            name, value = line.split(b":", 1)
            fields.append((_NAMES.get(name) or _field_name(name), value.strip(b" \t")))
    except ValueError:
        raise malformed("A field has no colon.") from None
    return fields


def _field_name(name: bytes) -> bytes:
    if not _FIELD_NAME.fullmatch(name):  # also a folded line, or a space before the colon
        raise malformed("The name of a field is not a token.")
    return name.lower()


def joined_values(fields: FieldLines) -> dict[bytes, bytes]:
    """Return the values by name, joining the values of repeated fields (RFC 9110, section 5.3).

    Raises 400 if a field with a single value is repeated.
    """
    values: dict[bytes, bytes] = {}
    for name, value in fields:
        if name not in values:
            values[name] = value
        elif name in _SINGLETONS:
            raise HttpError(reasons.FIELD_REPEATED, f"{name.decode()} occurs more than once.")
        else:
            values[name] += b", " + value
    return values


def list_members(value: bytes) -> list[bytes]:
    """Return the members of a list, in lower case."""
    return [token.strip(b" \t") for token in value.lower().split(b",")]


def read_content_length(values: dict[bytes, bytes], minor: int) -> int:
    """Return the length of the body, or CHUNKED; HttpError 400 or 501.

    RFC 9112, sections 6.1 to 6.3. `minor` is the minor version of HTTP.
    """
    length = values.get(b"content-length")
    coding = values.get(b"transfer-encoding")
    if coding is None and length is not None:
        if not _LENGTH.fullmatch(length):
            raise HttpError(reasons.LENGTH_INVALID, "Content-Length is not a number of bytes.")
        return int(length)
    if length is not None or not minor:
        raise HttpError(
            reasons.FRAMING_INVALID, "Transfer-Encoding excludes Content-Length and HTTP/1.0."
        )
    codings = list_members(coding or b"")
    if codings[-1] != b"chunked" or b"chunked" in codings[:-1]:
        raise HttpError(reasons.FRAMING_INVALID, "The last transfer coding must be chunked.")
    if len(codings) > 1:
        raise HttpError(
            reasons.CODING_UNKNOWN, "The server supports no transfer coding but chunked."
        )
    return CHUNKED


def require_continue(value: bytes, minor: int) -> bool:
    """Return whether to send 100 Continue before a body; 417 for other expectations.

    RFC 9110, section 10.1.1.
    """
    if not minor:
        return False
    if value.lower() != b"100-continue":
        raise HttpError(
            reasons.EXPECTATION_UNKNOWN, "The server supports no expectation but 100-continue."
        )
    return True


def malformed(message: str) -> HttpError:
    """Return the error of a head or body that is not HTTP/1.1."""
    return HttpError(reasons.MALFORMED_HTTP, message)
