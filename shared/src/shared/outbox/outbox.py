"""The outbox: events that are stored with their change and not yet confirmed by the broker.

The database parts are `postgres_outbox.py` and `mongo_outbox.py`; `relay.py` publishes the events.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, Self

from postbus.bus.v1 import Event
from shared.wire import encode, message_class, parse_as

__all__ = ["EncodedEvent", "Publish", "publish_all"]

_Event: Final[Any] = message_class("postbus.bus.v1.Event")


class EncodedEvent(NamedTuple):
    """An encoded event: the outbox stores `body`, and the broker receives the same bytes."""

    id: str
    type: str
    body: bytes

    @classmethod
    def of(cls, event: Event) -> Self:
        """Encode `event`."""
        return cls(event.id, event.type, encode(event))

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Read id and type of an encoded event; INVALID_ARGUMENT if `body` is malformed."""
        event: Any = parse_as(_Event, body)  # upb converts only the fields that are read
        return cls(event.id, event.type, body)


Publish = Callable[[EncodedEvent], Awaitable[None]]
"""Publishes an event; raises ServiceError unless the broker confirms it."""


async def publish_all(
    publish: Publish, events: Sequence[EncodedEvent]
) -> tuple[set[str], BaseException | None]:
    """Publish events in order; return the ids of the confirmed events, and the first error."""
    results = await asyncio.gather(*(publish(event) for event in events), return_exceptions=True)
    confirmed = {event.id for event, error in zip(events, results, strict=True) if error is None}
    return confirmed, next((error for error in results if error is not None), None)
