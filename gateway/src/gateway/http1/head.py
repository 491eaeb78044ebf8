"""The head of a request, parsed by the rules of RFC 9112 and RFC 9110.

If the specifications allow both, a head is refused instead of repaired: request smuggling uses
requests that a proxy and a server interpret differently.
"""

import re
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from gateway.http1.head_fields import (
    FIELD_TEXT,
    MAX_FIELDS,
    TOKEN,
    FieldLines,
    joined_values,
    list_members,
    malformed,
    parse_fields,
    read_content_length,
    require_continue,
)
from gateway.problems import HttpError
from gateway.targets import has_bad_escape, without_needless_escapes
from postbus import reasons

__all__ = ["Head", "parse_head"]

_METHODS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"QUERY")
)
_TOKEN: Final = re.compile(TOKEN)
_LINE_ENDS: Final = tuple(b"\r\n" * count for count in range(MAX_FIELDS + 1))
_ABSOLUTE: Final = re.compile(rb"https?://([^/?]*)(/[^?]*)?(\?.*)?", re.IGNORECASE)
_VERSION: Final = re.compile(rb"HTTP/([0-9])\.([0-9])")
# RFC 3986, section 3.2.2; only the characters are checked.
_HOST: Final = re.compile(rb"(?:[0-9A-Za-z\-._~!$&'()*+,;=%]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")


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
    fields: FieldLines
    content_length: int
    keep_alive: bool
    expects_continue: bool
    upgrade: bytes
    """The protocol of the Upgrade field, in lower case; empty without this field."""


def parse_head(data: bytes) -> Head:
    """Parse a head without its final empty line; HttpError 400, 417, 431, 501 or 505."""
    lines = data.split(b"\r\n")
    ends = len(lines) - 1
    if ends > MAX_FIELDS:
        raise HttpError(reasons.TOO_MANY_FIELDS, f"A head has at most {MAX_FIELDS} fields.")
    if data.translate(None, FIELD_TEXT) != _LINE_ENDS[ends]:
        raise malformed("The head has a control character, or a line without CR LF.")
    method, target, minor = _parse_request_line(lines[0])
    del lines[0]
    fields = parse_fields(lines)
    values = dict(fields)
    if len(values) != ends:
        values = joined_values(fields)
    if target[:1] == b"/":
        raw_path, _, query = target.partition(b"?")
    else:
        raw_path, query = _parse_other_form(method, target, fields, values)
    if minor or b"host" in values:
        _require_host(values.get(b"host", b""))
    path = raw_path.decode()
    if "%" in path:
        raw_path, path = _normalize(raw_path)
    tokens = list_members(values[b"connection"]) if b"connection" in values else ()
    content_length = (
        read_content_length(values, minor)
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
        b"expect" in values and require_continue(values[b"expect"], minor),
        values.get(b"upgrade", b"").lower() if b"upgrade" in tokens else b"",
    )


def _parse_request_line(line: bytes) -> tuple[bytes, bytes, int]:
    try:
        method, target, version = line.split(b" ")
    except ValueError:
        raise malformed("A request line is: method, target, version.") from None
    minor = 1 if version == b"HTTP/1.1" else _minor(version)
    if method not in _METHODS:
        if not _TOKEN.fullmatch(method):
            raise malformed("The method is not a token.")
        raise HttpError(reasons.METHOD_UNKNOWN, "The server does not support the method.")
    # Browsers send some characters that RFC 3986 excludes, such as "|" and "{".
    if not target.isascii() or b"#" in target or b"\t" in target or has_bad_escape(target):
        raise _bad_target()
    return method, target, minor


def _minor(version: bytes) -> int:
    match = _VERSION.fullmatch(version)
    if match is None:
        raise malformed("The version is not a version of HTTP.")
    if match[1] != b"1":
        raise HttpError(reasons.VERSION_NOT_SUPPORTED, "The server supports HTTP/1.1.")
    return 0 if match[2] == b"0" else 1


def _parse_other_form(
    method: bytes, target: bytes, fields: FieldLines, values: dict[bytes, bytes]
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
        fields[:] = [(name, host if name == b"host" else value) for name, value in fields]
    if method == b"OPTIONS" and not (match[2] or match[3]):
        return b"*", b""  # RFC 9112, section 3.2.4
    return match[2] or b"/", (match[3] or b"")[1:]


def _require_host(host: bytes) -> None:
    """Raise 400 for an invalid or empty host (RFC 9112, section 3.2; RFC 9110, section 4.2.1)."""
    if not _HOST.fullmatch(host):
        raise HttpError(reasons.HOST_INVALID, "A request has one Host field: a host and a port.")


def _normalize(raw_path: bytes) -> tuple[bytes, str]:
    """Return the path without needless escapes (RFC 3986, section 6.2.2.2), and decoded."""
    try:
        path = unquote_to_bytes(raw_path).decode()
    except UnicodeDecodeError:
        raise HttpError(reasons.TARGET_INVALID, "The path is not UTF-8.") from None
    return without_needless_escapes(raw_path), path


def _bad_target() -> HttpError:
    return HttpError(reasons.TARGET_INVALID, "The request target is neither a path nor a URL.")
