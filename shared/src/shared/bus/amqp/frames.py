"""The part of AMQP 0-9-1 that carries messages, as bytes.

Numbers in comments are sections of the specification, parts I (1, 2, 4) and XML (class.method).
A message is a method frame, a content header frame and any number of body frames (4.2.6).
"""

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from pamqp import decode, encode

__all__ = [
    "MAX_BODY",
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
"""Bytes of a body; a longer one is skipped, and delivered as `oversized`."""

_END: Final = b"\xce"  # 4.2.3: frame-end
_END_BYTE: Final = 0xCE
_METHOD, _HEADER, _BODY = 1, 2, 3  # 4.2.3: frame types
_BASIC: Final = 60
_BLOCKED, _UNBLOCKED = b"\0\x0a\0\x3c", b"\0\x0a\0\x3d"  # connection.blocked, RabbitMQ's own
_PUBLISH, _RETURN, _DELIVER, _ACK, _REJECT, _NACK = 40, 50, 60, 80, 90, 120
_BASIC_CLASS: Final = b"\0\x3c"
_CONFIRMS: Final = frozenset((_ACK, _NACK))
_OURS: Final = frozenset((_DELIVER, _RETURN, _ACK, _NACK))

_FRAME: Final = struct.Struct(">BHI")  # type, channel, size
_METHOD_FRAME: Final = struct.Struct(">BHIHH")  # the same, class and method
_HEADER_FRAME: Final = struct.Struct(">BHIHHQ")  # the same, class, weight and body size
_ACK_FRAME: Final = struct.Struct(">BHIHHQBB")  # the same, delivery tag, multiple or requeue, end
_SIZE: Final = struct.Struct(">I")
_TAG: Final = struct.Struct(">Q")
_BYTE: Final = [bytes((value,)) for value in range(256)]
_OVERHEAD: Final = 8
_SHORTEST_CONTENT: Final = 2 * _OVERHEAD + 14

# 4.2.6.1: property flags, in the order in which the properties follow.
_CONTENT_TYPE, _ENCODING, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_PRIORITY, _CORRELATION_ID, _REPLY_TO, _EXPIRATION = 1 << 11, 1 << 10, 1 << 9, 1 << 8
_MESSAGE_ID, _TYPE = 1 << 7, 1 << 5


class ProtocolError(Exception):
    """The broker's bytes are not AMQP 0-9-1."""


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
    )

    def __init__(  # one call for each message: no dataclass, no keywords
        self,
        tag: int,
        redelivered: bool,
        routing_key: str,
        correlation_id: str,
        reply_to: str,
        headers: bytes,
        body: bytes,
        oversized: bool = False,
    ) -> None:
        self.tag = tag
        self.redelivered = redelivered
        self.routing_key = routing_key
        self.correlation_id = correlation_id
        self.reply_to = reply_to
        self._headers = headers
        self.body = body
        self.oversized = oversized

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers, parsed at each use; empty if they are malformed."""
        try:
            return decode.field_table(self._headers)[1] if self._headers else {}
        except (ValueError, struct.error, IndexError, RecursionError):
            return {}


class Returned:
    """A mandatory message that no queue takes (basic.return)."""

    __slots__ = ("body", "correlation_id", "routing_key")

    def __init__(self, routing_key: str, correlation_id: str, body: bytes) -> None:
        self.routing_key = routing_key
        self.correlation_id = correlation_id
        self.body = body


class Confirmed:
    """The broker has, or refuses, what was published (basic.ack, basic.nack)."""

    __slots__ = ("multiple", "refused", "tag")

    def __init__(self, tag: int, *, multiple: bool, refused: bool) -> None:
        self.tag = tag
        self.multiple = multiple
        self.refused = refused


def _short(text: str) -> bytes:
    """4.2.5.3: a short string, at most 255 bytes."""
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > 255:
        raise ValueError("a short string of AMQP has at most 255 bytes")
    return _BYTE[len(data)] + data


@lru_cache(4096)
def _publish_method(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """60.40: reserved, exchange, routing key, bits."""
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
) -> bytes:
    """Return the flags and the list of a content header's properties (4.2.6.1)."""
    flags = _CONTENT_TYPE | _DELIVERY_MODE
    parts = [_short(content_type)]
    if headers:
        flags |= _HEADERS
        parts.append(encode.field_table(dict(headers)))
    parts.append(b"\x02" if persistent else b"\x01")
    if correlation_id:
        flags |= _CORRELATION_ID
        parts.append(_short(correlation_id))
    if reply_to:
        flags |= _REPLY_TO
        parts.append(_short(reply_to))
    if expiration_ms is not None:
        flags |= _EXPIRATION
        parts.append(_short(str(expiration_ms)))
    if message_id:
        flags |= _MESSAGE_ID
        parts.append(_short(message_id))
    if type_:
        flags |= _TYPE
        parts.append(_short(type_))
    return flags.to_bytes(2, "big") + b"".join(parts)


class Header:
    """Makes the properties of transient messages that differ in little."""

    __slots__ = ("_begin", "_reply_to")

    def __init__(self, content_type: str, reply_to: str) -> None:
        flags = _CONTENT_TYPE | _DELIVERY_MODE | _CORRELATION_ID | _REPLY_TO
        rest = _short(content_type) + b"\x01"
        self._begin = (
            flags.to_bytes(2, "big") + rest,
            (flags | _EXPIRATION).to_bytes(2, "big") + rest,
        )
        self._reply_to = _short(reply_to)

    def __call__(self, correlation_id: str, expiration_ms: int | None = None) -> bytes:
        """Return what `properties` would."""
        transient, expiring = self._begin
        if expiration_ms is None:
            return b"".join((transient, _short(correlation_id), self._reply_to))
        expiration = b"%d" % expiration_ms
        return b"".join(
            (expiring, _short(correlation_id), self._reply_to, _BYTE[len(expiration)], expiration)
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
    """Return the frames of basic.publish; `header` is what `properties` returns."""
    method = _publish_method(channel, exchange, routing_key, mandatory)
    size = len(body)
    head = _HEADER_FRAME.pack(_HEADER, channel, 12 + len(header), _BASIC, 0, size)
    room = frame_max - _OVERHEAD
    if size <= room:
        if not size:
            return b"".join((method, head, header, _END))
        frame = _FRAME.pack(_BODY, channel, size)
        return b"".join((method, head, header, _END, frame, body, _END))
    parts = [method, head, header, _END]
    for at in range(0, size, room):
        part = body[at : at + room]
        parts += (_FRAME.pack(_BODY, channel, len(part)), part, _END)
    return b"".join(parts)


def ack(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """Return the frame of basic.ack (60.80), for one message or all up to it."""
    return _ACK_FRAME.pack(_METHOD, channel, 13, _BASIC, _ACK, tag, multiple, _END_BYTE)


def reject(channel: int, tag: int, *, requeue: bool) -> bytes:
    """Return the frame of basic.reject (60.90)."""
    return _ACK_FRAME.pack(_METHOD, channel, 13, _BASIC, _REJECT, tag, requeue, _END_BYTE)


Message = Delivered | Returned | Confirmed


class _Content:
    """A message of which the method has come: its header and body follow, among other channels'."""

    __slots__ = ("header", "left", "method", "oversized", "parts")

    def __init__(self, method: bytes) -> None:
        self.method = method
        self.header = b""
        self.left = -1  # the header has not come
        self.oversized = False
        self.parts: list[bytes] = []


class Parser:
    """Takes the messages of chosen channels out of a stream of frames.

    `channels` maps a channel's number to what takes its messages; frames that are no message, and
    all of other channels, go to `others` unchanged. Nothing is kept but the frame that is not yet
    whole and the messages that are on their way, one for each channel. `on_blocked` is told when
    the broker takes no more messages, and when it does again.
    """

    def __init__(self, others: Callable[[bytes], None], on_blocked: Callable[[bool], None]) -> None:
        self.channels: dict[int, Callable[[Message], None]] = {}
        self.frame_max = 2**17
        self._others = others
        self._on_blocked = on_blocked
        self._rest = b""
        self._contents: dict[int, _Content] = {}

    def leave(self, channel: int) -> None:
        """Pass on what comes for a channel from now on."""
        self.channels.pop(channel, None)
        self._contents.pop(channel, None)

    def feed(self, data: bytes) -> bool:
        """Take bytes from the broker; ProtocolError if they can't be AMQP.

        Returns whether a message was among them.
        """
        buffer = self._rest + data if self._rest else data
        try:
            at, found = self._read(buffer)
        except (IndexError, struct.error) as error:
            raise ProtocolError("a method or header is cut short") from error
        self._rest = buffer[at:]
        return found

    def _read(self, buffer: bytes) -> tuple[int, bool]:
        """Read all frames that are whole; return where the next begins."""
        end, at, found = len(buffer), 0, False
        channels, contents, unpack = self.channels, self._contents, _FRAME.unpack_from
        passing = 0  # where the frames begin that are not for us
        while end - at >= _OVERHEAD:
            kind, channel, size = unpack(buffer, at)
            after = at + size + _OVERHEAD
            if size > self.frame_max:
                raise ProtocolError("a frame is longer than was agreed")
            if after > end:
                break
            if buffer[after - 1] != _END_BYTE:
                raise ProtocolError("a frame does not end where it should")
            handler = channels.get(channel)
            if handler is None or not self._is_ours(kind, channel, buffer, at, size):
                if channel == 0 and buffer[at + 7 : at + 11] in (_BLOCKED, _UNBLOCKED):
                    self._on_blocked(buffer[at + 7 : at + 11] == _BLOCKED)
                at = after
                continue
            if passing < at:
                self._others(buffer[passing:at])
            found = True
            if kind != _METHOD:
                if message := self._part(contents[channel], kind, buffer[at + 7 : after - 1]):
                    del contents[channel]
                    handler(message)
            elif buffer[at + 10] in _CONFIRMS:
                handler(_confirmed(buffer[at + 7 : after - 1]))
            elif whole := _whole(buffer, at + 7, after, end, channel):
                message, after = whole
                handler(message)
            else:
                contents[channel] = _Content(buffer[at + 7 : after - 1])
            at = passing = after
        if passing < at:
            self._others(buffer[passing:at])
        return at, found

    def _is_ours(self, kind: int, channel: int, buffer: bytes, at: int, size: int) -> bool:
        """Whether a frame of a chosen channel belongs to a message or confirms one."""
        if kind == _METHOD:
            ours = size >= 4 and buffer[at + 7 : at + 9] == _BASIC_CLASS
            if ours and channel in self._contents:
                raise ProtocolError("a method in the middle of a message")
            return ours and buffer[at + 10] in _OURS
        if kind in (_HEADER, _BODY):
            if channel not in self._contents:
                raise ProtocolError("content without a method")
            return True
        return False

    def _part(self, content: _Content, kind: int, payload: bytes) -> Message | None:
        """Add a header or a part of a body; return the message once it is whole."""
        if kind == _HEADER and content.left < 0:
            content.header = payload
            content.left = _TAG.unpack_from(payload, 4)[0]
            content.oversized = content.left > MAX_BODY
        elif kind == _BODY and len(payload) <= content.left:
            content.left -= len(payload)
            if not content.oversized:
                content.parts.append(payload)
        else:
            raise ProtocolError("content out of order")
        if content.left:
            return None
        body = content.parts[0] if len(content.parts) == 1 else b"".join(content.parts)
        return _message(content.method, 0, content.header, 0, body, content.oversized)


def _whole(
    buffer: bytes, method: int, header: int, end: int, channel: int
) -> tuple[Message, int] | None:
    """Return the message whose method has the payload at `method`, and where it ends.

    None unless its header frame, at `header`, and its body in one frame are there already: as they
    are for nearly all. What follows a method must belong to it (4.2.6), so what does not look so is
    left for the slow way to refuse.
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
    """Return the message whose method's payload is at `at`, its header's at `start`."""
    headers, correlation_id, reply_to = _read_properties(header, start)
    if method[at + 3] == _RETURN:  # 60.50: reply code, reply text, exchange, routing key
        key = at + 7 + method[at + 6]
        key += 1 + method[key]
        return Returned(_text(method, key), correlation_id, body)
    tag = at + 5 + method[at + 4]  # 60.60: consumer tag, delivery tag, redelivered, exchange, key
    key = tag + 10 + method[tag + 9]
    return Delivered(
        _TAG.unpack_from(method, tag)[0],
        method[tag + 8] == 1,
        _text(method, key),
        correlation_id,
        reply_to,
        headers,
        body,
        oversized,
    )


def _text(data: bytes, at: int) -> str:
    """Return the short string at `at` (4.2.5.3), of which `_short` makes the same bytes again."""
    return data[at + 1 : at + 1 + data[at]].decode("utf-8", "surrogateescape")


def _read_properties(header: bytes, start: int) -> tuple[bytes, str, str]:
    """Return the headers as bytes, correlation id and reply-to; the rest is not needed."""
    flags, at = header[start + 12] << 8 | header[start + 13], start + 14
    headers, correlation_id, reply_to = b"", "", ""
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
        correlation_id = _text(header, at)
        at += 1 + header[at]
    if flags & _REPLY_TO:
        reply_to = _text(header, at)
    return headers, correlation_id, reply_to


def _confirmed(payload: bytes) -> Confirmed:
    if len(payload) < 13:
        raise ProtocolError("a confirm is cut short")
    return Confirmed(
        _TAG.unpack_from(payload, 4)[0],
        multiple=bool(payload[12] & 1),
        refused=payload[3] == _NACK,
    )
