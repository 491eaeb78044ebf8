"""Calls, or replies, that leave in the same moment for the same place: one AMQP message for many.

Most of what a small message costs the broker, and both ends, is the message and not its bytes.
"""

from collections.abc import Sequence
from typing import Any, Final

from shared.errors import Code, ServiceError
from shared.wire import message_class, parse

__all__ = ["Batch", "batch_route", "fits", "single_route", "unpack"]

_BATCH: Final = "postbus.bus.v1.Batch"
_Batch: Any = message_class(_BATCH)
_SUFFIX: Final = "/batch"
_MAX_COUNT: Final = 8
"""More would keep workers of one queue from sharing the calls of a moment."""
_MAX_MESSAGE: Final = 16 * 2**10
"""Bytes; what is larger travels alone."""
_MAX_ID: Final = 255
"""Bytes of a correlation id (4.2.5.3)."""
_MAX_READ: Final = 64, 2 * 2**20
"""Messages and bytes of a batch that is read, whoever made it."""


def batch_route(route: str) -> str:
    """Return the routing key of batches of calls of a route."""
    return route + _SUFFIX


def single_route(routing_key: str) -> str:
    """Return the route of a batch of calls; empty if it is none."""
    return routing_key[: -len(_SUFFIX)] if routing_key.endswith(_SUFFIX) else ""


def fits(message: bytes) -> bool:
    """Whether a message may be part of a batch."""
    return len(message) <= _MAX_MESSAGE


class Batch:
    """Messages, each with its correlation id."""

    __slots__ = ("ids", "messages")

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.messages: list[bytes] = []

    def add(self, correlation_id: str, message: bytes) -> bool:
        """Add a message; return whether the batch is full."""
        self.ids.append(correlation_id)
        self.messages.append(message)
        return len(self.ids) >= _MAX_COUNT

    def pack(self) -> bytes:
        """Return it encoded."""
        batch = _Batch(correlation_ids=self.ids, messages=self.messages)
        data: bytes = batch.SerializeToString()
        return data


def unpack(data: bytes) -> Sequence[tuple[str, bytes]]:
    """Return the messages with their correlation ids; INVALID_ARGUMENT if they are malformed."""
    count, size = _MAX_READ
    if len(data) > size:
        raise ServiceError(Code.INVALID_ARGUMENT, "BATCH_TOO_LARGE", "The batch is too large.")
    batch: Any = parse(_BATCH, data)
    ids, messages = batch.correlation_ids, batch.messages
    if not len(ids) == len(messages) <= count or any(len(each.encode()) > _MAX_ID for each in ids):
        raise ServiceError(Code.INVALID_ARGUMENT, "MALFORMED_BATCH", "Not a valid batch.")
    return list(zip(ids, messages, strict=True))
