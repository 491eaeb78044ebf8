"""The exchanges and queues of Postbus at the broker: names, arguments and bindings."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, Self

from pamqp.base import Frame
from pamqp.commands import Exchange as ExchangeClass
from pamqp.commands import Queue as QueueClass

from shared.bus.message_bus import KEPT_SECONDS

__all__ = [
    "ATTEMPT",
    "CONSUMER",
    "DEAD_AT",
    "ERROR_MESSAGE",
    "EVENT_STREAM",
    "OLD_DELAYS",
    "REASON",
    "Binding",
    "Exchange",
    "Kind",
    "Queue",
    "TopologyError",
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
_INEQUIVALENT: Final = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for \w+ '(?P<name>[^']+)'.*?: received (?P<ours>.*?)"
    r" but current is (?P<theirs>.*)",
    re.DOTALL,
)


class TopologyError(RuntimeError):
    """A queue exists at the broker with other arguments than this version needs."""

    @classmethod
    def of_refusal(cls, refusal: str) -> Self:
        """Return the error for the broker's refusal to declare a queue; it names the difference."""
        found = _INEQUIVALENT.search(refusal)
        if found is None:
            return cls(f"The broker refuses a declaration: {refusal}")
        ours, theirs = (_value(found[side]) for side in ("ours", "theirs"))
        return cls(
            f"The queue {found['name']} has {found['argument']} {theirs} at the broker,"
            f" and {ours} in this version."
        )


def _value(text: str) -> str:
    value = re.search(r"value '([^']*)'", text)
    return value[1] if value else text.strip().strip("'\"").removesuffix('")')


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


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: str

    def frames(self, *, passive: bool = False) -> Iterator[Frame]:
        """Return the method that declares it, or only checks that it exists."""
        yield ExchangeClass.Declare(
            exchange=self.name, exchange_type=self.type, durable=True, passive=passive
        )


def service_exchanges(service: str) -> list[Exchange]:
    """Return the exchanges that a service owns."""
    return [Exchange(exchange(kind, service), type_) for kind, type_ in _TYPES.items()]


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding of a queue to an exchange."""

    queue: str
    exchange: str
    key: str

    def frames(self, *, passive: bool = False) -> Iterator[Frame]:
        """Return the method that declares it; no method only checks that it exists."""
        yield QueueClass.Bind(queue=self.queue, exchange=self.exchange, routing_key=self.key)

    def removal(self) -> Frame:
        """Return the method that removes it."""
        return QueueClass.Unbind(queue=self.queue, exchange=self.exchange, routing_key=self.key)


def event_bindings(queue: str, types: Sequence[str]) -> list[Binding]:
    """Return the bindings of a queue to the events of `types`."""
    return [Binding(queue, exchange("events", owner(type_)), type_) for type_ in types]


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue with its bindings to exchanges of its own service.

    Bindings to the exchanges of another service are made apart: they may be missing.
    """

    name: str
    arguments: Mapping[str, str | int]
    bindings: Sequence[Binding] = ()
    auto_delete: bool = False
    exclusive: bool = False
    """Whether the queue belongs to its connection and is deleted with it. It is not durable."""
    transient: bool = False
    """Whether the queue is deleted with its node. In a cluster, another node can then have it."""
    own_exchange: bool = False
    """Whether a fanout exchange of the same name belongs to the queue."""

    def frames(self, *, passive: bool = False) -> Iterator[Frame]:
        """Return the methods that declare it and its bindings, or only check that it exists."""
        if self.own_exchange:
            yield from Exchange(self.name, "fanout").frames(passive=passive)
        yield QueueClass.Declare(
            queue=self.name,
            passive=passive,
            durable=not (self.exclusive or self.transient),
            exclusive=self.exclusive,
            auto_delete=self.auto_delete,
            arguments=dict(self.arguments),
        )
        for binding in self.bindings:
            yield from binding.frames()


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
