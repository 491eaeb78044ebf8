"""The outbox: events that are stored with their change and not yet confirmed by the broker.

The database parts are `postgres_outbox.py` and `mongo_outbox.py`; `relay.py` publishes the events.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Self

from postbus import reasons
from postbus.bus.v1 import Event
from shared.errors import ServiceError
from shared.limited_log import LimitedLog
from shared.wire import encode, message_class, parse_as

__all__ = ["EncodedEvent", "Publish", "Published", "publish_all", "retry_delay"]

_log = LimitedLog()
_Event: Final[Any] = message_class("postbus.bus.v1.Event")
_REFUSED: Final = (reasons.EVENT_REFUSED, reasons.EVENT_UNROUTED)
"""Reasons that concern one event; all others concern every event, such as a lost connection."""
_LONGEST_RETRY: Final = 60.0
"""Longest time between two attempts to publish a refused event, in seconds."""
_MAX_DOUBLINGS: Final = 10


class EncodedEvent(NamedTuple):
    """An encoded event: the outbox stores `body`, and the broker receives the same bytes."""

    id: str
    type: str
    body: bytes
    subject: str = ""

    @classmethod
    def of(cls, event: Event) -> Self:
        """Encode `event`."""
        return cls(event.id, event.type, encode(event), event.subject)

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Read the names of an encoded event; INVALID_ARGUMENT if `body` is malformed."""
        event: Any = parse_as(_Event, body)  # upb converts only the fields that are read
        return cls(event.id, event.type, body, event.subject)


Publish = Callable[[EncodedEvent], Awaitable[None]]
"""Publishes an event; raises ServiceError unless the broker confirms it."""


class Published(NamedTuple):
    """The result of an attempt to publish events."""

    confirmed: set[str]
    """Ids of the events that the broker has."""
    refused: set[str]
    """Ids of the events that it refused, and of the events behind them."""
    failure: Exception | None
    """The first error that concerns every event."""


async def publish_all(publish: Publish, events: Iterable[EncodedEvent]) -> Published:
    """Publish events concurrently, but the events of one subject in order.

    An event that is not confirmed holds up the later events of its subject, and no other event.
    """
    subjects: dict[str, list[EncodedEvent]] = {}
    for event in events:
        subjects.setdefault(event.subject or event.id, []).append(event)
    results = await asyncio.gather(
        *(_publish_in_order(publish, each) for each in subjects.values())
    )
    confirmed, refused, failure = set[str](), set[str](), None
    for ordered, (count, error) in zip(subjects.values(), results, strict=True):
        confirmed.update(event.id for event in ordered[:count])
        if isinstance(error, ServiceError) and error.reason in _REFUSED:
            refused.update(event.id for event in ordered[count:])
            name = ordered[count].type
            _log.write(logging.WARNING, "event.refused", key=name, event_type=name)
        else:
            failure = failure or error
    return Published(confirmed, refused, failure)


async def _publish_in_order(
    publish: Publish, events: Sequence[EncodedEvent]
) -> tuple[int, Exception | None]:
    """Publish until the first error; return the number of confirmed events, and the error."""
    for count, event in enumerate(events):
        try:
            await publish(event)
        except Exception as error:  # noqa: BLE001  # after any error the outbox still has the event
            return count, error
    return len(events), None


def retry_delay(attempts: int) -> float:
    """Return the seconds until a refused event is published again; `attempts` from 0."""
    delay = min(2.0 ** min(attempts, _MAX_DOUBLINGS), _LONGEST_RETRY)
    return delay * random.uniform(0.5, 1)  # noqa: S311  # jitter, not a secret
