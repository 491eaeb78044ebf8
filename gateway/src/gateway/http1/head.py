"""The head of a request, read by the rules of RFC 9112 and RFC 9110.

A head is refused where the specifications allow a choice between repair and refusal: two readings
of one request, by a proxy and by this server, are how requests are smuggled.
"""

import re
from collections.abc import Iterable
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from gateway.problems import HttpError
from gateway.targets import has_bad_escape, without_needless_escapes
from shared.errors import Code, Outcome

__all__ = [
    "CHUNKED",
    "FIELD_TEXT",
    "HEAD_BYTES",
    "MAX_FIELDS",
    "TOKEN",
    "Fields",
    "Head",
    "parse_head",
    "refusal",
]

HEAD_BYTES: Final = 64 * 1024
"""Largest head: request line and fields, with their line ends."""
MAX_FIELDS: Final = 100
"""Most field lines of one head."""
CHUNKED: Final = -1
"""`Head.content_length` of a body with `Transfer-Encoding: chunked`."""

Fields = list[tuple[bytes, bytes]]
"""Names in lower case, and values, in the order of the head."""

_METHODS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"QUERY")
)
# RFC 9110 defines these as single values; so do RFC 6454, RFC 6455, Fetch and the drafts of
# Idempotency-Key. Host and Content-Length are in the list too: RFC 9112, sections 3.2 and 6.3.
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
# A dictionary lookup instead of a match and a copy for each field.
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
_LINE_ENDS: Final = tuple(b"\r\n" * count for count in range(MAX_FIELDS + 1))
_ABSOLUTE: Final = re.compile(rb"https?://([^/?]*)(/[^?]*)?(\?.*)?", re.IGNORECASE)
_VERSION: Final = re.compile(rb"HTTP/([0-9])\.([0-9])")
# RFC 3986, section 3.2.2; not read further than its characters.
_HOST: Final = re.compile(rb"(?:[0-9A-Za-z\-._~!$&'()*+,;=%]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")


class Head(NamedTuple):
    """A valid head, in the terms of an ASGI scope."""

    method: str
    path: str
    """Percent-decoded."""
    raw_path: bytes
    """With unreserved characters decoded, so that equivalent paths are equal."""
    query: bytes
    version: str
    """1.1 for every later minor version (RFC 9110, section 2.5)."""
    fields: Fields
    content_length: int
    keep_alive: bool
    expects_continue: bool
    upgrade: bytes
    """The protocol of the Upgrade field, in lower case; empty if there is no offer."""


def refusal(status: int, reason: str, message: str, outcome: int = Outcome.NO_EFFECT) -> HttpError:
    """Return the error of a request that this server does not take."""
    error = HttpError(status, Code.INVALID_ARGUMENT, reason, message)
    error.outcome = Outcome.try_value(outcome)
    return error


def parse_head(data: bytes) -> Head:
    """Read a head, given without the empty line that ends it; HttpError 400, 417, 431, 501, 505."""
    lines = data.split(b"\r\n")
    ends = len(lines) - 1
    if ends > MAX_FIELDS:
        raise refusal(431, "TOO_MANY_FIELDS", f"A head has at most {MAX_FIELDS} fields.")
    if data.translate(None, FIELD_TEXT) != _LINE_ENDS[ends]:
        raise _malformed("The head holds a control character, or a line without CR LF.")
    method, target, minor = _request_line(lines[0])
    del lines[0]
    fields = _fields(lines)
    values = dict(fields)
    if len(values) != ends:
        values = _joined(fields)
    if target[:1] == b"/":
        raw_path, _, query = target.partition(b"?")
    else:
        raw_path, query = _other_form(method, target, fields, values)
    if minor or b"host" in values:
        _require_host(values.get(b"host", b""))
    path = raw_path.decode()
    if "%" in path:
        raw_path, path = _normalized(raw_path)
    tokens = _tokens(values[b"connection"]) if b"connection" in values else ()
    content_length = (
        _content_length(values, minor)
        if b"content-length" in values or b"transfer-encoding" in values
        else 0
    )
    return Head(
        method.decode(),
        path,
        raw_path,
        query,
        "1.1" if minor else "1.0",
        fields,
        content_length,
        bool(minor) and b"close" not in tokens,
        b"expect" in values and _expects_continue(values[b"expect"], minor, content_length),
        values.get(b"upgrade", b"").lower() if b"upgrade" in tokens else b"",
    )


def _request_line(line: bytes) -> tuple[bytes, bytes, int]:
    try:
        method, target, version = line.split(b" ")
    except ValueError:
        raise _malformed("A request line is: method, target, version.") from None
    minor = 1 if version == b"HTTP/1.1" else _minor(version)
    if method not in _METHODS:
        if not _FIELD_NAME.fullmatch(method):
            raise _malformed("The method is not a token.")
        raise refusal(501, "METHOD_UNKNOWN", "This server does not know the method.")
    # Browsers send some characters that RFC 3986 excludes, such as "|" and "{".
    if not target.isascii() or b"#" in target or b"\t" in target or has_bad_escape(target):
        raise _bad_target()
    return method, target, minor


def _minor(version: bytes) -> int:
    match = _VERSION.fullmatch(version)
    if match is None:
        raise _malformed("The version is not one of HTTP.")
    if match[1] != b"1":
        raise refusal(505, "VERSION_NOT_SUPPORTED", "This server speaks HTTP/1.1.")
    return 0 if match[2] == b"0" else 1


def _fields(lines: Iterable[bytes]) -> Fields:
    fields: Fields = []
    try:
        for line in lines:
            name, value = line.split(b":", 1)
            fields.append((_NAMES.get(name) or _field_name(name), value.strip(b" \t")))
    except ValueError:
        raise _malformed("A field has no colon.") from None
    return fields


def _field_name(name: bytes) -> bytes:
    if not _FIELD_NAME.fullmatch(name):  # a folded line and a space before the colon, too
        raise _malformed("The name of a field is not a token.")
    return name.lower()


def _joined(fields: Fields) -> dict[bytes, bytes]:
    """Join the values of fields that occur several times (RFC 9110, section 5.3)."""
    values: dict[bytes, bytes] = {}
    for name, value in fields:
        if name not in values:
            values[name] = value
        elif name in _SINGLETONS:
            raise refusal(400, "FIELD_REPEATED", f"{name.decode()} occurs more than once.")
        else:
            values[name] += b", " + value
    return values


def _other_form(
    method: bytes, target: bytes, fields: Fields, values: dict[bytes, bytes]
) -> tuple[bytes, bytes]:
    """Return path and query of a target in absolute or asterisk form (RFC 9112, section 3.2)."""
    if target == b"*" and method == b"OPTIONS":
        return target, b""
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise _bad_target()
    host = match[1]
    _require_host(host)
    if b"host" in values:  # replaced: RFC 9112, section 3.2.2
        _require_host(values[b"host"])
        fields[:] = [(name, host if name == b"host" else value) for name, value in fields]
    return match[2] or b"/", (match[3] or b"")[1:]


def _require_host(host: bytes) -> None:
    """RFC 9112, section 3.2; an empty host has no meaning in http (RFC 9110, section 4.2.1)."""
    if not _HOST.fullmatch(host):
        raise refusal(400, "HOST_INVALID", "A request has one Host field: a host and a port.")


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip(b" \t") for token in value.lower().split(b",")]


def _content_length(values: dict[bytes, bytes], minor: int) -> int:
    """RFC 9112, sections 6.1 to 6.3."""
    length = values.get(b"content-length")
    coding = values.get(b"transfer-encoding")
    if coding is None and length is not None:
        if not _LENGTH.fullmatch(length):
            raise refusal(400, "LENGTH_INVALID", "Content-Length is not a number of bytes.")
        return int(length)
    if length is not None or not minor:
        raise refusal(
            400, "FRAMING_INVALID", "Transfer-Encoding excludes Content-Length and HTTP/1.0."
        )
    codings = _tokens(coding or b"")
    if codings[-1] != b"chunked" or b"chunked" in codings[:-1]:
        raise refusal(400, "FRAMING_INVALID", "The last and only the last coding is chunked.")
    if len(codings) > 1:
        raise refusal(501, "CODING_UNKNOWN", "Of transfer codings, this server knows chunked.")
    return CHUNKED


def _expects_continue(value: bytes, minor: int, content_length: int) -> bool:
    """RFC 9110, section 10.1.1."""
    if not minor:
        return False
    if value.lower() != b"100-continue":
        raise refusal(
            417, "EXPECTATION_UNKNOWN", "Of expectations, this server knows 100-continue."
        )
    return content_length != 0


def _normalized(raw_path: bytes) -> tuple[bytes, str]:
    """Return the path without needless escapes (RFC 3986, section 6.2.2.2), and decoded."""
    try:
        path = unquote_to_bytes(raw_path).decode()
    except UnicodeDecodeError:
        raise refusal(400, "TARGET_INVALID", "The path is not UTF-8.") from None
    return without_needless_escapes(raw_path), path


def _bad_target() -> HttpError:
    return refusal(400, "TARGET_INVALID", "The request target is not a path or a URL.")


def _malformed(message: str) -> HttpError:
    return refusal(400, "MALFORMED_HTTP", message)
