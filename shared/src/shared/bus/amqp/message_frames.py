"""Decode the frames of a message, all at once or one by one, and confirms.

Numbers in comments are sections of the specification; see `frame_format`.
"""

from typing import Final

from shared.bus.amqp.frame_format import (
    BODY,
    END_BYTE,
    FRAME,
    HEADER,
    HEADER_FRAME,
    NACK,
    OVERHEAD,
    RETURN,
    TAG,
    ProtocolError,
)
from shared.bus.amqp.message_properties import read_properties, read_short_string
from shared.bus.amqp.received_messages import Confirmed, Delivered, Message, Returned

__all__ = ["IncompleteMessage", "complete_message", "confirmed"]

MAX_BODY: Final = 16 * 2**20
"""Largest body in bytes; a longer one is skipped, and the message delivered as `oversized`."""

_SHORTEST_CONTENT: Final = 2 * OVERHEAD + 14


class IncompleteMessage:
    """A message of which the method frame has arrived, and the header or the body only in part."""

    __slots__ = ("_header", "_left", "_method", "_oversized", "_parts")

    def __init__(self, method: bytes) -> None:
        self._method = method
        self._header = b""
        self._left = -1  # the header has not arrived
        self._oversized = False
        self._parts: list[bytes] = []

    def append(self, kind: int, payload: bytes) -> Message | None:
        """Add a header or a part of a body; return the message once it is complete."""
        if kind == HEADER and self._left < 0:
            self._header = payload
            self._left = TAG.unpack_from(payload, 4)[0]
            self._oversized = self._left > MAX_BODY
        elif kind == BODY and len(payload) <= self._left:
            self._left -= len(payload)
            if not self._oversized:
                self._parts.append(payload)
        else:
            raise ProtocolError("content frames out of order")
        if self._left:
            return None
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        return _message(self._method, 0, self._header, 0, body, self._oversized)


def complete_message(
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


def confirmed(payload: bytes) -> Confirmed:
    """Return the confirm or refusal in the payload of basic.ack or basic.nack (60.80, 60.120)."""
    if len(payload) < 13:
        raise ProtocolError("a confirm is truncated")
    return Confirmed(
        TAG.unpack_from(payload, 4)[0],
        multiple=bool(payload[12] & 1),
        refused=payload[3] == NACK,
    )
