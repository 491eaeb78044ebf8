"""Read the AMQP frames of incoming messages.

Numbers in comments are sections of the specification; see `frame_format`.

There are two ways through a message. If all three frames are in the buffer, as they are for nearly
every call, `_parse_complete` reads them in one step. Otherwise (a body of several frames, frames of
other channels in between, or bytes that have not arrived) `_append_part` collects the message frame
by frame.
"""

import struct
from collections.abc import Callable
from typing import Final

from shared.bus.amqp.frame_format import (
    BASIC_CLASS,
    BLOCKED,
    BODY,
    CHANNEL_CLOSE,
    CONFIRMS,
    CONNECTION_CLOSE,
    END_BYTE,
    FRAME,
    HEADER,
    HEADER_FRAME,
    MESSAGE_METHODS,
    METHOD,
    NACK,
    OVERHEAD,
    RETURN,
    TAG,
    UNBLOCKED,
)
from shared.bus.amqp.message_properties import read_properties, read_short_string
from shared.bus.amqp.received_messages import Closed, Confirmed, Delivered, Message, Returned

__all__ = ["FrameReader", "ProtocolError"]

MAX_BODY: Final = 16 * 2**20
"""Largest body in bytes; a longer one is skipped, and the message delivered as `oversized`."""

_SHORTEST_CONTENT: Final = 2 * OVERHEAD + 14


class ProtocolError(Exception):
    """The bytes from the broker are not valid AMQP 0-9-1."""


class _Content:
    """An incomplete message: the method frame has arrived, the header or body only in part."""

    __slots__ = ("header", "left", "method", "oversized", "parts")

    def __init__(self, method: bytes) -> None:
        self.method = method
        self.header = b""
        self.left = -1  # the header has not arrived
        self.oversized = False
        self.parts: list[bytes] = []


class FrameReader:
    """Extracts the messages of registered channels from a stream of AMQP frames.

    `channels` maps the number of a channel to the handler of its messages. All other frames are
    passed to `on_other` unchanged. The reader keeps only an incomplete frame and one incomplete
    message per channel. `on_blocked` is called with True when the broker stops accepting messages,
    and with False when it accepts them again; `on_closing` with the reason when it closes the
    connection, such as "530 NOT_ALLOWED - vhost posts not found".
    """

    def __init__(
        self,
        on_other: Callable[[bytes], None],
        on_blocked: Callable[[bool], None],
        on_closing: Callable[[str], None],
    ) -> None:
        self.channels: dict[int, Callable[[Message], None]] = {}
        self.frame_max = 2**17
        self._on_other = on_other
        self._on_blocked = on_blocked
        self._on_closing = on_closing
        self._rest = b""
        self._contents: dict[int, _Content] = {}

    def unregister(self, channel: int) -> None:
        """Pass all frames of a channel to `on_other` from now on."""
        self.channels.pop(channel, None)
        self._contents.pop(channel, None)

    def read(self, data: bytes) -> bool:
        """Parse bytes from the broker; ProtocolError if they are not valid AMQP.

        Returns whether they contained a frame of a registered channel's message.
        """
        buffer = self._rest + data if self._rest else data
        try:
            at, found = self._read_complete(buffer)
        except (IndexError, struct.error) as error:
            raise ProtocolError("a method or header is truncated") from error
        self._rest = buffer[at:]
        return found

    def _read_complete(self, buffer: bytes) -> tuple[int, bool]:
        """Parse all complete frames.

        Returns the offset of the first incomplete one, and whether a message frame was found.
        """
        end, at, found = len(buffer), 0, False
        channels, contents, unpack = self.channels, self._contents, FRAME.unpack_from
        other = 0  # the offset of the first frame that is not yet passed on
        while end - at >= OVERHEAD:
            kind, channel, size = unpack(buffer, at)
            after = at + size + OVERHEAD
            if size > self.frame_max:
                raise ProtocolError("a frame exceeds the negotiated size")
            if after > end:
                break
            if buffer[after - 1] != END_BYTE:
                raise ProtocolError("a frame has no end octet")
            handler = channels.get(channel)
            if handler is None or not self._is_message_frame(kind, channel, buffer, at, size):
                if channel == 0:
                    self._read_connection_method(buffer[at + 7 : after - 1])
                elif handler is not None and buffer[at + 7 : at + 11] == CHANNEL_CLOSE:
                    handler(Closed())
                at = after
                continue
            if other < at:
                self._on_other(buffer[other:at])
            found = True
            if kind != METHOD:
                payload = buffer[at + 7 : after - 1]
                if message := self._append_part(contents[channel], kind, payload):
                    del contents[channel]
                    handler(message)
            elif buffer[at + 10] in CONFIRMS:
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

    def _read_connection_method(self, payload: bytes) -> None:
        method = payload[:4]
        if method in (BLOCKED, UNBLOCKED):
            self._on_blocked(method == BLOCKED)
        elif method == CONNECTION_CLOSE:  # 10.50: reply code, reply text
            code = payload[4] << 8 | payload[5]
            self._on_closing(f"{code} {read_short_string(payload, 6)}")

    def _is_message_frame(self, kind: int, channel: int, buffer: bytes, at: int, size: int) -> bool:
        """Return whether a frame of a registered channel belongs to a message or confirms one."""
        if kind == METHOD:
            found = size >= 4 and buffer[at + 7 : at + 9] == BASIC_CLASS
            if found and channel in self._contents:
                raise ProtocolError("a method frame inside a message")
            return found and buffer[at + 10] in MESSAGE_METHODS
        if kind in (HEADER, BODY):
            if channel not in self._contents:
                raise ProtocolError("a content frame without a method frame")
            return True
        return False

    def _append_part(self, content: _Content, kind: int, payload: bytes) -> Message | None:
        """Add a header or a part of a body; return the message once it is complete."""
        if kind == HEADER and content.left < 0:
            content.header = payload
            content.left = TAG.unpack_from(payload, 4)[0]
            content.oversized = content.left > MAX_BODY
        elif kind == BODY and len(payload) <= content.left:
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
    kind, number, size, _, _, body_size = HEADER_FRAME.unpack_from(buffer, header)
    frame = header + size + OVERHEAD
    if kind != HEADER or number != channel or end - frame < OVERHEAD:
        return None
    kind, number, length = FRAME.unpack_from(buffer, frame)
    after = frame + length + OVERHEAD
    if (
        kind != BODY
        or number != channel
        or after > end
        or body_size != length
        or buffer[frame - 1] != END_BYTE
        or buffer[after - 1] != END_BYTE
    ):
        return None
    body = buffer[frame + 7 : after - 1]
    return _message(buffer, method, buffer, header + 7, body, oversized=False), after


def _message(
    method: bytes, at: int, header: bytes, start: int, body: bytes, oversized: bool
) -> Message:
    """Return the message with its method payload at `at` and its header payload at `start`."""
    headers, correlation_id, reply_to, user_id = read_properties(header, start)
    if method[at + 3] == RETURN:  # 60.50: reply code, reply text, exchange, routing key
        key = at + 7 + method[at + 6]
        key += 1 + method[key]
        return Returned(read_short_string(method, key), correlation_id, body)
    tag = at + 5 + method[at + 4]  # 60.60: consumer tag, delivery tag, redelivered, exchange, key
    key = tag + 10 + method[tag + 9]
    return Delivered(
        TAG.unpack_from(method, tag)[0],
        read_short_string(method, key),
        correlation_id,
        reply_to,
        headers,
        body,
        user_id,
        oversized,
        method[tag + 8] == 1,
    )


def _confirmed(payload: bytes) -> Confirmed:
    if len(payload) < 13:
        raise ProtocolError("a confirm is truncated")
    return Confirmed(
        TAG.unpack_from(payload, 4)[0],
        multiple=bool(payload[12] & 1),
        refused=payload[3] == NACK,
    )
