"""Encode and decode the AMQP 0-9-1 frames that carry messages.

Numbers in comments are sections of the specification, parts I (1, 2, 4) and XML (class.method).
A message is a method frame, a content header frame and any number of body frames (4.2.6). With a
body in one frame, sizes in bytes:

      1      2       4    payload                                   1
    +---+---------+------+---------------------------------------+----+
    | 1 | channel | size | class 2, method 2, arguments          | CE |  deliver, publish, return
    +---+---------+------+---------------------------------------+----+
    | 2 | channel | size | class 2, weight 2, body size 8,       | CE |  content header
    |   |         |      | property flags 2, property list       |    |
    +---+---------+------+---------------------------------------+----+
    | 3 | channel | size | body                                  | CE |  body
    +---+---------+------+---------------------------------------+----+

The parser has two ways through a message. If all three frames are in the buffer, as they are for
nearly every call, `_parse_complete` reads them in one step. Otherwise (a body of several frames,
frames of other channels in between, or bytes that have not arrived) `_append_part` collects the
message frame by frame.
"""

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pamqp import decode, encode

__all__ = [
    "Closed",
    "Confirmed",
    "Delivered",
    "Header",
    "Parser",
    "ProtocolError",
    "Returned",
    "ack",
    "properties",
    "publish",
    "reject",
]

MAX_BODY: Final = 16 * 2**20
"""Largest body in bytes; a longer one is skipped, and the message delivered as `oversized`."""

_END: Final = b"\xce"  # 4.2.3: frame-end
_END_BYTE: Final = 0xCE
_METHOD, _HEADER, _BODY = 1, 2, 3  # 4.2.3: frame types
_BASIC: Final = 60
_CHANNEL_CLOSE: Final = b"\0\x14\0\x28"
_BLOCKED, _UNBLOCKED = b"\0\x0a\0\x3c", b"\0\x0a\0\x3d"  # connection.blocked, a RabbitMQ extension
_PUBLISH, _RETURN, _DELIVER, _ACK, _REJECT, _NACK = 40, 50, 60, 80, 90, 120
_BASIC_CLASS: Final = b"\0\x3c"
_CONFIRMS: Final = frozenset((_ACK, _NACK))
_MESSAGE_METHODS: Final = frozenset((_DELIVER, _RETURN, _ACK, _NACK))

_FRAME: Final = struct.Struct(">BHI")  # type, channel, size
_METHOD_FRAME: Final = struct.Struct(">BHIHH")  # the same, class and method
_HEADER_FRAME: Final = struct.Struct(">BHIHHQ")  # the same, class, weight and body size
_ACK_FRAME: Final = struct.Struct(">BHIHHQBB")  # the same, delivery tag, multiple or requeue, end
_SIZE: Final = struct.Struct(">I")
_TAG: Final = struct.Struct(">Q")
_BYTE: Final = [bytes((value,)) for value in range(256)]
_OVERHEAD: Final = 8
_SHORTEST_CONTENT: Final = 2 * _OVERHEAD + 14
_TOO_LONG: Final = "a short string of AMQP has at most 255 bytes"

# 4.2.6.1: property flags, in the order in which the properties follow.
_CONTENT_TYPE, _ENCODING, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_PRIORITY, _CORRELATION_ID, _REPLY_TO, _EXPIRATION = 1 << 11, 1 << 10, 1 << 9, 1 << 8
_MESSAGE_ID, _TIMESTAMP, _TYPE, _USER_ID = 1 << 7, 1 << 6, 1 << 5, 1 << 4


class ProtocolError(Exception):
    """The bytes from the broker are not valid AMQP 0-9-1."""


class Delivered:
    """A message from a queue (basic.deliver)."""

    __slots__ = (
        "_headers",
        "body",
        "correlation_id",
        "oversized",
        "redelivered",
        "reply_to",
        "routing_key",
        "tag",
        "user_id",
    )

    def __init__(  # called for every message: faster than a dataclass or keywords
        self,
        tag: int,
        routing_key: str,
        correlation_id: str,
        reply_to: str,
        headers: bytes,
        body: bytes,
        user_id: str = "",
        oversized: bool = False,
        redelivered: bool = False,
    ) -> None:
        self.tag = tag
        self.routing_key = routing_key
        self.correlation_id = correlation_id
        self.reply_to = reply_to
        self._headers = headers
        self.body = body
        self.user_id = user_id
        self.oversized = oversized
        self.redelivered = redelivered

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers, parsed at each access; empty if they are malformed."""
        try:
            return decode.field_table(self._headers)[1] if self._headers else {}
        except (ValueError, struct.error, IndexError, RecursionError):
            return {}


class Returned(NamedTuple):
    """An unroutable mandatory message (basic.return)."""

    routing_key: str
    correlation_id: str
    body: bytes


class Confirmed(NamedTuple):
    """The confirm or refusal of published messages (basic.ack, basic.nack)."""

    tag: int
    multiple: bool
    refused: bool


class Closed(NamedTuple):
    """The broker has closed the channel (channel.close); nothing may be sent on it any more."""


Message = Delivered | Returned | Confirmed | Closed


def _short(text: str) -> bytes:
    """Encode a short string (4.2.5.3); ValueError if it has more than 255 bytes."""
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > 255:
        raise ValueError(_TOO_LONG)
    return _BYTE[len(data)] + data


@lru_cache(4096)
def _publish_method(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """Encode the frame of basic.publish (60.40): reserved, exchange, routing key, bits."""
    arguments = b"\0\0" + _short(exchange) + _short(routing_key) + bytes((mandatory,))
    return (
        _METHOD_FRAME.pack(_METHOD, channel, len(arguments) + 4, _BASIC, _PUBLISH)
        + arguments
        + _END
    )


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
    parts = [_short(content_type)]
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
            parts.append(_short(text))
    return flags.to_bytes(2, "big") + b"".join(parts)


class Header:
    """Encodes the properties of transient messages; only the id and the expiration vary."""

    __slots__ = ("_prefixes", "_reply_to", "_user_id")

    def __init__(self, content_type: str, reply_to: str, user_id: str) -> None:
        flags = _CONTENT_TYPE | _DELIVERY_MODE | _CORRELATION_ID | _REPLY_TO | _USER_ID
        rest = _short(content_type) + b"\x01"
        self._prefixes = (
            flags.to_bytes(2, "big") + rest,
            (flags | _EXPIRATION).to_bytes(2, "big") + rest,
        )
        self._reply_to = _short(reply_to)
        self._user_id = _short(user_id)

    def __call__(self, correlation_id: str, expiration_ms: int | None = None) -> bytes:
        """Return the same bytes as `properties`."""
        name = correlation_id.encode("utf-8", "surrogateescape")  # `_short`, without its call
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


def publish(
    channel: int,
    exchange: str,
    routing_key: str,
    header: bytes,
    body: bytes,
    frame_max: int,
    mandatory: bool = False,
) -> bytes:
    """Return the frames of basic.publish; `header` is a result of `properties`."""
    method = _publish_method(channel, exchange, routing_key, mandatory)
    size = len(body)
    head = _HEADER_FRAME.pack(_HEADER, channel, 12 + len(header), _BASIC, 0, size)
    max_payload = frame_max - _OVERHEAD
    if size <= max_payload:
        if not size:
            return b"".join((method, head, header, _END))
        frame = _FRAME.pack(_BODY, channel, size)
        return b"".join((method, head, header, _END, frame, body, _END))
    parts = [method, head, header, _END]
    for at in range(0, size, max_payload):
        part = body[at : at + max_payload]
        parts += (_FRAME.pack(_BODY, channel, len(part)), part, _END)
    return b"".join(parts)


def ack(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """Return the frame of basic.ack (60.80), for one message or for all up to it (`multiple`)."""
    return _ACK_FRAME.pack(_METHOD, channel, 13, _BASIC, _ACK, tag, multiple, _END_BYTE)


def reject(channel: int, tag: int, *, requeue: bool) -> bytes:
    """Return the frame of basic.reject (60.90)."""
    return _ACK_FRAME.pack(_METHOD, channel, 13, _BASIC, _REJECT, tag, requeue, _END_BYTE)


class _Content:
    """An incomplete message: the method frame has arrived, the header or body only in part."""

    __slots__ = ("header", "left", "method", "oversized", "parts")

    def __init__(self, method: bytes) -> None:
        self.method = method
        self.header = b""
        self.left = -1  # the header has not arrived
        self.oversized = False
        self.parts: list[bytes] = []


class Parser:
    """Extracts the messages of registered channels from a stream of AMQP frames.

    `channels` maps the number of a channel to the handler of its messages. All other frames are
    passed to `on_other` unchanged. The parser keeps only an incomplete frame and one incomplete
    message per channel. `on_blocked` is called with True when the broker stops accepting messages,
    and with False when it accepts them again.
    """

    def __init__(
        self, on_other: Callable[[bytes], None], on_blocked: Callable[[bool], None]
    ) -> None:
        self.channels: dict[int, Callable[[Message], None]] = {}
        self.frame_max = 2**17
        self._on_other = on_other
        self._on_blocked = on_blocked
        self._rest = b""
        self._contents: dict[int, _Content] = {}

    def unregister(self, channel: int) -> None:
        """Pass all frames of a channel to `on_other` from now on."""
        self.channels.pop(channel, None)
        self._contents.pop(channel, None)

    def feed(self, data: bytes) -> bool:
        """Parse bytes from the broker; ProtocolError if they are not valid AMQP.

        Returns whether they contained a frame of a registered channel's message.
        """
        buffer = self._rest + data if self._rest else data
        try:
            at, found = self._read(buffer)
        except (IndexError, struct.error) as error:
            raise ProtocolError("a method or header is truncated") from error
        self._rest = buffer[at:]
        return found

    def _read(self, buffer: bytes) -> tuple[int, bool]:
        """Parse all complete frames.

        Returns the offset of the first incomplete one, and whether a message frame was found.
        """
        end, at, found = len(buffer), 0, False
        channels, contents, unpack = self.channels, self._contents, _FRAME.unpack_from
        other = 0  # the offset of the first frame that is not yet passed on
        while end - at >= _OVERHEAD:
            kind, channel, size = unpack(buffer, at)
            after = at + size + _OVERHEAD
            if size > self.frame_max:
                raise ProtocolError("a frame exceeds the negotiated size")
            if after > end:
                break
            if buffer[after - 1] != _END_BYTE:
                raise ProtocolError("a frame has no end octet")
            handler = channels.get(channel)
            if handler is None or not self._is_message_frame(kind, channel, buffer, at, size):
                if channel == 0 and buffer[at + 7 : at + 11] in (_BLOCKED, _UNBLOCKED):
                    self._on_blocked(buffer[at + 7 : at + 11] == _BLOCKED)
                elif handler is not None and buffer[at + 7 : at + 11] == _CHANNEL_CLOSE:
                    handler(Closed())
                at = after
                continue
            if other < at:
                self._on_other(buffer[other:at])
            found = True
            if kind != _METHOD:
                payload = buffer[at + 7 : after - 1]
                if message := self._append_part(contents[channel], kind, payload):
                    del contents[channel]
                    handler(message)
            elif buffer[at + 10] in _CONFIRMS:
                handler(_confirmed(buffer[at + 7 : after - 1]))
            elif complete := _parse_complete(buffer, at + 7, after, end, channel):
                message, after = complete
                handler(message)
            else:
                contents[channel] = _Content(buffer[at + 7 : after - 1])
            at = other = after
        if other < at:
            self._on_other(buffer[other:at])
        return at, found

    def _is_message_frame(self, kind: int, channel: int, buffer: bytes, at: int, size: int) -> bool:
        """Return whether a frame of a registered channel belongs to a message or confirms one."""
        if kind == _METHOD:
            found = size >= 4 and buffer[at + 7 : at + 9] == _BASIC_CLASS
            if found and channel in self._contents:
                raise ProtocolError("a method frame inside a message")
            return found and buffer[at + 10] in _MESSAGE_METHODS
        if kind in (_HEADER, _BODY):
            if channel not in self._contents:
                raise ProtocolError("a content frame without a method frame")
            return True
        return False

    def _append_part(self, content: _Content, kind: int, payload: bytes) -> Message | None:
        """Add a header or a part of a body; return the message once it is complete."""
        if kind == _HEADER and content.left < 0:
            content.header = payload
            content.left = _TAG.unpack_from(payload, 4)[0]
            content.oversized = content.left > MAX_BODY
        elif kind == _BODY and len(payload) <= content.left:
            content.left -= len(payload)
            if not content.oversized:
                content.parts.append(payload)
        else:
            raise ProtocolError("content frames out of order")
        if content.left:
            return None
        body = content.parts[0] if len(content.parts) == 1 else b"".join(content.parts)
        return _message(content.method, 0, content.header, 0, body, content.oversized)


def _parse_complete(
    buffer: bytes, method: int, header: int, end: int, channel: int
) -> tuple[Message, int] | None:
    """Return the message with its method payload at `method`, and the offset of its end.

    None unless its header frame, at `header`, and its body in one frame are in the buffer. Frames
    that do not belong together (4.2.6) also give None: the other path then refuses them.
    """
    if end - header < _SHORTEST_CONTENT:
        return None
    kind, number, size, _, _, body_size = _HEADER_FRAME.unpack_from(buffer, header)
    frame = header + size + _OVERHEAD
    if kind != _HEADER or number != channel or end - frame < _OVERHEAD:
        return None
    kind, number, length = _FRAME.unpack_from(buffer, frame)
    after = frame + length + _OVERHEAD
    if (
        kind != _BODY
        or number != channel
        or after > end
        or body_size != length
        or buffer[frame - 1] != _END_BYTE
        or buffer[after - 1] != _END_BYTE
    ):
        return None
    body = buffer[frame + 7 : after - 1]
    return _message(buffer, method, buffer, header + 7, body, oversized=False), after


def _message(
    method: bytes, at: int, header: bytes, start: int, body: bytes, oversized: bool
) -> Message:
    """Return the message with its method payload at `at` and its header payload at `start`."""
    headers, correlation_id, reply_to, user_id = _read_properties(header, start)
    if method[at + 3] == _RETURN:  # 60.50: reply code, reply text, exchange, routing key
        key = at + 7 + method[at + 6]
        key += 1 + method[key]
        return Returned(_text(method, key), correlation_id, body)
    tag = at + 5 + method[at + 4]  # 60.60: consumer tag, delivery tag, redelivered, exchange, key
    key = tag + 10 + method[tag + 9]
    return Delivered(
        _TAG.unpack_from(method, tag)[0],
        _text(method, key),
        correlation_id,
        reply_to,
        headers,
        body,
        user_id,
        oversized,
        method[tag + 8] == 1,
    )


def _text(data: bytes, at: int) -> str:
    """Decode the short string at `at` (4.2.5.3); `_short` encodes it to the same bytes."""
    return data[at + 1 : at + 1 + data[at]].decode("utf-8", "surrogateescape")


def _read_properties(header: bytes, start: int) -> tuple[bytes, str, str, str]:
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


def _confirmed(payload: bytes) -> Confirmed:
    if len(payload) < 13:
        raise ProtocolError("a confirm is truncated")
    return Confirmed(
        _TAG.unpack_from(payload, 4)[0],
        multiple=bool(payload[12] & 1),
        refused=payload[3] == _NACK,
    )
