"""Encode and decode the properties of messages: the payload of a content header frame.

Numbers in comments are sections of the specification, part I.
"""

import struct
from collections.abc import Mapping
from typing import Any, Final

from pamqp import encode

__all__ = [
    "PROTOBUF",
    "Header",
    "properties",
    "read_properties",
    "read_short_string",
    "short_string",
]

# 4.2.6.1: property flags, in the order in which the properties follow.
_CONTENT_TYPE, _ENCODING, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_PRIORITY, _CORRELATION_ID, _REPLY_TO, _EXPIRATION = 1 << 11, 1 << 10, 1 << 9, 1 << 8
_MESSAGE_ID, _TIMESTAMP, _TYPE, _USER_ID = 1 << 7, 1 << 6, 1 << 5, 1 << 4
PROTOBUF: Final = "application/x-protobuf"

_BYTE: Final = [bytes((value,)) for value in range(256)]
_TOO_LONG: Final = "a short string of AMQP has at most 255 bytes"
_SIZE: Final = struct.Struct(">I")


def short_string(text: str) -> bytes:
    """Encode a short string (4.2.5.3); ValueError if it has more than 255 bytes."""
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > 255:
        raise ValueError(_TOO_LONG)
    return _BYTE[len(data)] + data


def read_short_string(data: bytes, at: int) -> str:
    """Decode the short string at `at` (4.2.5.3); `short_string` encodes it to the same bytes."""
    return data[at + 1 : at + 1 + data[at]].decode("utf-8", "surrogateescape")


def properties(
    content_type: str,
    *,
    headers: Mapping[str, Any] | None = None,
    persistent: bool = False,
    correlation_id: str = "",
    reply_to: str = "",
    expiration_ms: int | None = None,
    message_id: str = "",
    type_: str = "",
    user_id: str = "",
) -> bytes:
    """Return the property flags and the property list of a content header (4.2.6.1)."""
    flags = _CONTENT_TYPE | _DELIVERY_MODE
    parts = [short_string(content_type)]
    if headers:
        flags |= _HEADERS
        parts.append(encode.field_table(dict(headers)))
    parts.append(b"\x02" if persistent else b"\x01")
    for flag, text in (
        (_CORRELATION_ID, correlation_id),
        (_REPLY_TO, reply_to),
        (_EXPIRATION, "" if expiration_ms is None else str(expiration_ms)),
        (_MESSAGE_ID, message_id),
        (_TYPE, type_),
        (_USER_ID, user_id),
    ):
        if text:
            flags |= flag
            parts.append(short_string(text))
    return flags.to_bytes(2, "big") + b"".join(parts)


class Header:
    """Encodes the properties of transient messages; only the id and the expiration vary."""

    __slots__ = ("_prefixes", "_reply_to", "_user_id")

    def __init__(self, content_type: str, reply_to: str, user_id: str) -> None:
        flags = _CONTENT_TYPE | _DELIVERY_MODE | _CORRELATION_ID | _REPLY_TO | _USER_ID
        rest = short_string(content_type) + b"\x01"
        self._prefixes = (
            flags.to_bytes(2, "big") + rest,
            (flags | _EXPIRATION).to_bytes(2, "big") + rest,
        )
        self._reply_to = short_string(reply_to)
        self._user_id = short_string(user_id)

    def __call__(self, correlation_id: str, expiration_ms: int | None = None) -> bytes:
        """Return the same bytes as `properties`."""
        name = correlation_id.encode("utf-8", "surrogateescape")  # `short_string`, without its call
        if len(name) > 255:
            raise ValueError(_TOO_LONG)
        transient, expiring = self._prefixes
        if expiration_ms is None:
            return b"".join((transient, _BYTE[len(name)], name, self._reply_to, self._user_id))
        expiration = b"%d" % expiration_ms
        length = _BYTE[len(expiration)]
        return b"".join(
            (
                expiring,
                _BYTE[len(name)],
                name,
                self._reply_to,
                length,
                expiration,
                self._user_id,
            )
        )


def read_properties(header: bytes, start: int) -> tuple[bytes, str, str, str]:
    """Return the encoded headers, correlation id, reply-to and user id; skip the rest."""
    flags, at = header[start + 12] << 8 | header[start + 13], start + 14
    headers, correlation_id, reply_to, user_id = b"", "", "", ""
    if flags & _CONTENT_TYPE:
        at += 1 + header[at]
    if flags & _ENCODING:
        at += 1 + header[at]
    if flags & _HEADERS:
        after = at + 4 + _SIZE.unpack_from(header, at)[0]
        headers = header[at:after]
        at = after
    if flags & _DELIVERY_MODE:
        at += 1
    if flags & _PRIORITY:
        at += 1
    if flags & _CORRELATION_ID:
        end = at + 1 + header[at]
        correlation_id = header[at + 1 : end].decode("utf-8", "surrogateescape")
        at = end
    if flags & _REPLY_TO:
        end = at + 1 + header[at]
        reply_to = header[at + 1 : end].decode("utf-8", "surrogateescape")
        at = end
    if flags & _USER_ID:
        if flags & _EXPIRATION:
            at += 1 + header[at]
        if flags & _MESSAGE_ID:
            at += 1 + header[at]
        if flags & _TIMESTAMP:
            at += 8
        if flags & _TYPE:
            at += 1 + header[at]
        user_id = header[at + 1 : at + 1 + header[at]].decode("utf-8", "surrogateescape")
    return headers, correlation_id, reply_to, user_id
