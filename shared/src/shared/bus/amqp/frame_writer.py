"""Encode the AMQP frames of outgoing messages and acknowledgements.

Numbers in comments are sections of the specification; see `frame_format`.
"""

from functools import lru_cache

from shared.bus.amqp.frame_format import (
    ACK,
    ACK_FRAME,
    BASIC,
    BODY,
    END,
    END_BYTE,
    FRAME,
    HEADER,
    HEADER_FRAME,
    METHOD,
    METHOD_FRAME,
    OVERHEAD,
    PUBLISH,
    REJECT,
)
from shared.bus.amqp.message_properties import short_string

__all__ = ["ack", "publish", "reject"]


@lru_cache(4096)
def _publish_method(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """Encode the frame of basic.publish (60.40): reserved, exchange, routing key, bits."""
    arguments = b"\0\0" + short_string(exchange) + short_string(routing_key) + bytes((mandatory,))
    return METHOD_FRAME.pack(METHOD, channel, len(arguments) + 4, BASIC, PUBLISH) + arguments + END


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
    head = HEADER_FRAME.pack(HEADER, channel, 12 + len(header), BASIC, 0, size)
    max_payload = frame_max - OVERHEAD
    if size <= max_payload:
        if not size:
            return b"".join((method, head, header, END))
        frame = FRAME.pack(BODY, channel, size)
        return b"".join((method, head, header, END, frame, body, END))
    parts = [method, head, header, END]
    for at in range(0, size, max_payload):
        part = body[at : at + max_payload]
        parts += (FRAME.pack(BODY, channel, len(part)), part, END)
    return b"".join(parts)


def ack(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """Return the frame of basic.ack (60.80), for one message or for all up to it (`multiple`)."""
    return ACK_FRAME.pack(METHOD, channel, 13, BASIC, ACK, tag, multiple, END_BYTE)


def reject(channel: int, tag: int, *, requeue: bool) -> bytes:
    """Return the frame of basic.reject (60.90)."""
    return ACK_FRAME.pack(METHOD, channel, 13, BASIC, REJECT, tag, requeue, END_BYTE)
