"""Batches: several calls, or replies, in one AMQP message.

The cost of a small message, at the broker and at both ends, depends on the number of messages more
than on their bytes.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, Generic, TypeVar

from postbus import reasons
from shared.bus.amqp.transport import Transport
from shared.errors import ServiceError
from shared.wire import message_class, parse

__all__ = ["MAX_BATCHED", "Batch", "BatchCollector", "batch_route", "single_route", "unpack"]

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
    """Messages with their correlation ids; `budget` is their longest budget, in seconds."""

    __slots__ = ("budget", "ids", "messages")

    def __init__(self) -> None:
        self.budget = 0.0
        self.ids: list[str] = []
        self.messages: list[bytes] = []

    def pack(self) -> bytes:
        """Return the encoded batch."""
        batch = _Batch(correlation_ids=self.ids, messages=self.messages)
        data: bytes = batch.SerializeToString()
        return data


def unpack(data: bytes) -> Sequence[tuple[str, bytes]]:
    """Return the messages of an encoded batch with their correlation ids.

    INVALID_ARGUMENT if the batch is malformed, empty or too large.
    """
    count, size = _MAX_READ
    if len(data) > size:
        raise ServiceError(reasons.BATCH_TOO_LARGE, "The batch is too large.")
    batch: Any = parse(_BATCH, data)
    ids, messages = batch.correlation_ids, batch.messages
    if not 0 < len(ids) == len(messages) <= count or any(
        len(each.encode()) > _MAX_ID for each in ids
    ):
        raise ServiceError(reasons.MALFORMED_BATCH, "The batch is malformed.")
    return list(zip(ids, messages, strict=True))


_Target = TypeVar("_Target", bound=Hashable)


class BatchCollector(Generic[_Target]):
    """Collects the messages of one event-loop tick into batches, one or more per target.

    `send` publishes a batch: when it is full, else at the end of the tick.
    """

    def __init__(self, send: Callable[[_Target, Batch], None]) -> None:
        self._send = send
        self._open: dict[_Target, Batch] = {}

    def add(
        self,
        transport: Transport,
        target: _Target,
        correlation_id: str,
        message: bytes,
        budget: float = 0.0,
    ) -> None:
        """Add a message to the open batch of its target."""
        batch = self._open.get(target)
        if batch is None:
            if not self._open:
                transport.before_sending(self._send_all)
            batch = self._open[target] = Batch()
        batch.budget = max(batch.budget, budget)
        batch.ids.append(correlation_id)
        batch.messages.append(message)
        if len(batch.ids) >= _MAX_COUNT:
            del self._open[target]
            self._send(target, batch)

    def _send_all(self) -> None:
        batches, self._open = self._open, {}
        for target, batch in batches.items():
            self._send(target, batch)
