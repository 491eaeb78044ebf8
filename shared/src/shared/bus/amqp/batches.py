"""Batches: several calls, or replies, in one AMQP message.

The cost of a small message, at the broker and at both ends, depends on the number of messages more
than on their bytes.
"""

from collections.abc import Sequence
from typing import Any, Final

from shared.errors import Code, ServiceError
from shared.wire import message_class, parse

__all__ = ["MAX_BATCHED", "Batch", "batch_route", "single_route", "unpack"]

MAX_BATCHED: Final = 16 * 2**10
"""Largest message in a batch, in bytes; a larger one is sent as a single message."""

_BATCH: Final = "postbus.bus.v1.Batch"
_Batch: Any = message_class(_BATCH)
_SUFFIX: Final = "/batch"
_MAX_COUNT: Final = 8
"""Larger batches would keep the workers of a queue from sharing concurrent calls."""
_MAX_ID: Final = 255
"""Bytes of a correlation id (4.2.5.3)."""
_MAX_READ: Final = 64, 2 * 2**20
"""Messages and bytes of a received batch; it may come from a program with other limits."""


def batch_route(route: str) -> str:
    """Return the routing key for batches of calls to a route."""
    return route + _SUFFIX


def single_route(routing_key: str) -> str:
    """Return the route of a batch of calls; empty if the key is not that of a batch."""
    return routing_key[: -len(_SUFFIX)] if routing_key.endswith(_SUFFIX) else ""


class Batch:
    """Messages with their correlation ids."""

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
        """Return the encoded batch."""
        batch = _Batch(correlation_ids=self.ids, messages=self.messages)
        data: bytes = batch.SerializeToString()
        return data


def unpack(data: bytes) -> Sequence[tuple[str, bytes]]:
    """Return the messages of an encoded batch with their correlation ids.

    INVALID_ARGUMENT if the batch is malformed or too large.
    """
    count, size = _MAX_READ
    if len(data) > size:
        raise ServiceError(Code.INVALID_ARGUMENT, "BATCH_TOO_LARGE", "The batch is too large.")
    batch: Any = parse(_BATCH, data)
    ids, messages = batch.correlation_ids, batch.messages
    if not len(ids) == len(messages) <= count or any(len(each.encode()) > _MAX_ID for each in ids):
        raise ServiceError(Code.INVALID_ARGUMENT, "MALFORMED_BATCH", "The batch is malformed.")
    return list(zip(ids, messages, strict=True))
