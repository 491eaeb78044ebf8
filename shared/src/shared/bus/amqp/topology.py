"""The exchanges and queues of Postbus at the broker: names, arguments and bindings."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from shared.bus.message_bus import KEPT_SECONDS

__all__ = [
    "ALL_EVENTS",
    "ATTEMPT",
    "CALL_EXCHANGE",
    "CONSUMER",
    "CONTROL_EXCHANGE",
    "DEAD_AT",
    "ERROR_MESSAGE",
    "EVENT_EXCHANGE",
    "REASON",
    "Queue",
    "TopologyError",
    "consumer_queue",
    "dead_letters",
    "delay_queue",
    "event_stream",
]

CALL_EXCHANGE: Final = "postbus.calls"
CONTROL_EXCHANGE: Final = "postbus.control"
EVENT_EXCHANGE: Final = "postbus.events"

# Headers of retried events and of dead letters.
ATTEMPT: Final = "x-postbus-attempt"
REASON: Final = "x-postbus-reason"
ERROR_MESSAGE: Final = "x-postbus-message"
CONSUMER: Final = "x-postbus-consumer"
DEAD_AT: Final = "x-postbus-time"

_DELIVERY_LIMIT: Final = 10
"""Redeliveries of an event whose worker is lost each time, before it becomes a dead letter."""
_SEGMENT_BYTES: Final = 2**20
"""Segments of streams. The broker deletes old events by whole segments, when a segment is full."""
_DEAD_LETTER_MS: Final = 14 * 24 * 60 * 60 * 1000
"""Time after which a dead letter is deleted: it may contain personal data of deleted users."""
_QUORUM: Final = {"x-queue-type": "quorum"}
_SAFE_DEAD_LETTERS: Final = {
    "x-dead-letter-exchange": "",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}
_INEQUIVALENT: Final = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for \w+ '(?P<name>[^']+)'.*?: received (?P<ours>.*?)"
    r" but current is (?P<theirs>.*)",
    re.DOTALL,
)


class TopologyError(RuntimeError):
    """A queue exists at the broker with other arguments than this version needs."""

    @classmethod
    def of_refusal(cls, name: str, refusal: str) -> Self:
        """Return the error for the broker's refusal to declare a queue; it names the difference."""
        found = _INEQUIVALENT.search(refusal)
        if found is None:
            return cls(f"The broker refuses the queue {name}: {refusal}")
        ours, theirs = (_value(found[side]) for side in ("ours", "theirs"))
        return cls(
            f"The queue {found['name']} has {found['argument']} {theirs} at the broker,"
            f" and {ours} in this version."
        )


def _value(text: str) -> str:
    value = re.search(r"value '([^']*)'", text)
    return value[1] if value else text.strip().strip("'\"").removesuffix('")')


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A durable queue, bound to `exchange` by each of `keys`."""

    name: str
    arguments: Mapping[str, str | int]
    exchange: str = ""
    keys: Sequence[str] = ()
    own_exchange: bool = False
    """Whether the exchange belongs to this queue alone: a fanout exchange, declared with it."""


ALL_EVENTS: Final = Queue(
    name="postbus.events.stream",
    arguments={
        "x-queue-type": "stream",
        "x-max-age": "7D",
        "x-max-length-bytes": 2**30,
        "x-stream-max-segment-size-bytes": _SEGMENT_BYTES,
    },
    exchange=EVENT_EXCHANGE,
    keys=("#",),
)
"""All events; a consumer can read it from any point."""


def event_stream(name: str, types: Sequence[str]) -> Queue:
    """Return the stream of the events of `types`, kept for at least `KEPT_SECONDS`."""
    return Queue(
        name=name,
        arguments={
            "x-queue-type": "stream",
            "x-max-age": f"{KEPT_SECONDS}s",
            "x-max-length-bytes": 2**27,
            "x-stream-max-segment-size-bytes": _SEGMENT_BYTES,
        },
        exchange=EVENT_EXCHANGE,
        keys=types,
    )


def consumer_queue(name: str, types: Sequence[str]) -> Queue:
    """Return the queue of a consumer: the events that it has not processed."""
    return Queue(
        name=name,
        arguments=_QUORUM
        | _SAFE_DEAD_LETTERS
        | {
            "x-delivery-limit": _DELIVERY_LIMIT,
            "x-dead-letter-routing-key": dead_letters(name).name,
        },
        exchange=EVENT_EXCHANGE,
        keys=types,
    )


def dead_letters(queue: str) -> Queue:
    """Return the queue of a consumer's dead letters, which are kept for 14 days.

    It has practically no delivery limit, because `just dlq` requeues the messages that it displays.
    """
    arguments: dict[str, str | int] = _QUORUM | {"x-delivery-limit": 2**31 - 1}
    arguments["x-message-ttl"] = _DEAD_LETTER_MS
    return Queue(name=f"{queue}.dead", arguments=arguments)


def delay_queue(seconds: float) -> Queue:
    """Return the queue in which events wait before a retry.

    Publish to its exchange with the name of the consumer's queue as the routing key; the events go
    there after the delay.
    """
    name = f"postbus.delay.{round(seconds * 1000)}ms"
    arguments = _QUORUM | _SAFE_DEAD_LETTERS | {"x-message-ttl": round(seconds * 1000)}
    return Queue(name=name, arguments=arguments, exchange=name, keys=("",), own_exchange=True)
