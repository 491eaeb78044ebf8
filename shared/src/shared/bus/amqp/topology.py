"""The exchanges and queues of Postbus at the broker: names, arguments and bindings."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal

from shared.bus.amqp.declarations import Binding, Exchange, Queue
from shared.bus.message_bus import KEPT_SECONDS

__all__ = [
    "ATTEMPT",
    "CONSUMER",
    "DEAD_AT",
    "ERROR_MESSAGE",
    "EVENT_STREAM",
    "OLD_DELAYS",
    "REASON",
    "Kind",
    "all_bindings",
    "all_events",
    "consumer_queue",
    "dead_letters",
    "delay_queue",
    "event_bindings",
    "event_stream",
    "exchange",
    "method_queue",
    "owner",
    "service_exchanges",
]

Kind = Literal["calls", "replies", "control", "retry", "dead", "events"]
"""What the messages of an exchange are. Each service has an exchange of each kind."""

_TYPES: Final[Mapping[Kind, str]] = {
    "calls": "direct",  # a direct exchange costs the broker less than a topic exchange
    "replies": "direct",
    "control": "direct",
    "retry": "direct",
    "dead": "direct",
    "events": "topic",
}

EVENT_STREAM: Final = "gateway.events"
OLD_DELAYS: Final = "postbus.delay."
"""Prefix of the delay queues that all services shared before each had exchanges of its own."""

# Headers of retried events and of dead letters.
ATTEMPT: Final = "x-postbus-attempt"
REASON: Final = "x-postbus-reason"
ERROR_MESSAGE: Final = "x-postbus-message"
CONSUMER: Final = "x-postbus-consumer"
DEAD_AT: Final = "x-postbus-time"

_DELIVERY_LIMIT: Final = 10
"""Redeliveries of an event whose worker is lost each time, before it becomes a dead letter."""
_ORPHAN_EXPIRES_MS: Final = 1000
"""Expiry of a queue without consumers. Auto-delete does not apply before the first consumer."""
_SEGMENT_BYTES: Final = 2**20
"""Segments of streams. The broker deletes old events by whole segments, when a segment is full."""
_DEAD_LETTER_MS: Final = 14 * 24 * 60 * 60 * 1000
"""Time after which a dead letter is deleted: it may contain personal data of deleted users."""
_QUORUM: Final = {"x-queue-type": "quorum"}
_SAFE_DEAD_LETTERS: Final = {
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


@lru_cache(4096)
def owner(name: str) -> str:
    """Return the service that owns an event type or a method: the second part of its package.

    Every worker serves the methods of postbus.bus, with its own name as the last part of the route.
    """
    parts = name.split(".")
    return parts[-1] if name.startswith("postbus.bus.") or len(parts) < 2 else parts[1]


def exchange(kind: Kind, service: str) -> str:
    """Return the name of an exchange of a service."""
    return f"postbus.{kind}.{service}"


def service_exchanges(service: str) -> list[Exchange]:
    """Return the exchanges that a service owns."""
    return [Exchange(exchange(kind, service), type_) for kind, type_ in _TYPES.items()]


def event_bindings(queue: str, types: Sequence[str]) -> list[Binding]:
    """Return the bindings of a queue to the events of `types`."""
    return [Binding(queue, exchange("events", owner(type_)), type_) for type_ in types]


def all_events() -> Queue:
    """Return the stream of all events; a consumer can read it from any point."""
    return Queue(
        name=EVENT_STREAM,
        arguments={
            "x-queue-type": "stream",
            "x-max-age": "7D",
            "x-max-length-bytes": 2**30,
            "x-stream-max-segment-size-bytes": _SEGMENT_BYTES,
        },
    )


def all_bindings(services: Iterable[str]) -> list[Binding]:
    """Return the bindings of the stream of all events."""
    return [Binding(EVENT_STREAM, exchange("events", each), "#") for each in sorted(services)]


def event_stream(service: str, name: str) -> Queue:
    """Return a stream of a service. It keeps events for at least `KEPT_SECONDS`."""
    name = f"{service}.{name}"
    return Queue(
        name=name,
        arguments={
            "x-queue-type": "stream",
            "x-max-age": f"{KEPT_SECONDS}s",
            "x-max-length-bytes": 2**27,
            "x-stream-max-segment-size-bytes": _SEGMENT_BYTES,
        },
        bindings=[Binding(name, exchange("retry", service), name)],
    )


def consumer_queue(service: str, name: str) -> Queue:
    """Return the queue of a consumer: the events that it has not processed."""
    return Queue(
        name=name,
        arguments=_QUORUM
        | _SAFE_DEAD_LETTERS
        | {
            "x-delivery-limit": _DELIVERY_LIMIT,
            "x-dead-letter-exchange": exchange("dead", service),
            "x-dead-letter-routing-key": name,
        },
        bindings=[Binding(name, exchange("retry", service), name)],
    )


def dead_letters(service: str, queue: str) -> Queue:
    """Return the queue of a consumer's dead letters, which are kept for 14 days.

    It has practically no delivery limit, because `just dlq` requeues the messages that it displays.
    """
    name = f"{queue}.dead"
    arguments: dict[str, str | int] = _QUORUM | {"x-delivery-limit": 2**31 - 1}
    arguments["x-message-ttl"] = _DEAD_LETTER_MS
    return Queue(
        name=name,
        arguments=arguments,
        bindings=[Binding(name, exchange("dead", service), queue)],
    )


def method_queue(service: str, name: str, route: str) -> Queue:
    """Return the queue of the calls of a method, which the broker deletes with its last consumer.

    It is bound to the calls exchange after the start of its consumer.
    """
    # Transient: the name of a durable queue cannot be declared anywhere else while its node is
    # down. A quorum queue would survive, but costs each call a write to disk; a queue for each
    # process would get a copy of each call (docs/operations.md).
    return Queue(
        name=name,
        arguments={"x-expires": _ORPHAN_EXPIRES_MS},
        bindings=[Binding(name, exchange("retry", service), route)],
        auto_delete=True,
        transient=True,
    )


def delay_queue(service: str, seconds: float) -> Queue:
    """Return the queue in which events wait before a retry.

    Publish to its exchange with the name of the consumer's queue as the routing key; the events go
    there after the delay.
    """
    milliseconds = round(seconds * 1000)
    name = f"{service}.delay.{milliseconds}"
    return Queue(
        name=name,
        arguments=_QUORUM
        | _SAFE_DEAD_LETTERS
        | {"x-message-ttl": milliseconds, "x-dead-letter-exchange": exchange("retry", service)},
        bindings=[Binding(name, name, "")],
        own_exchange=True,
    )
