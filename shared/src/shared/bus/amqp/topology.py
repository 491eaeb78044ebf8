"""What Postbus has at the broker: exchanges, queues, their arguments and bindings, as data."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from shared.bus.amqp.broker_connection import Link
from shared.bus.message_bus import KEPT_SECONDS

__all__ = [
    "ATTEMPT",
    "CONSUMER",
    "CONTROL_EXCHANGE",
    "EVENT_EXCHANGE",
    "MESSAGE",
    "REASON",
    "RPC_EXCHANGE",
    "STREAM",
    "TIME",
    "Queue",
    "TopologyError",
    "consumer_queue",
    "consumers",
    "dead_letters",
    "declare",
    "declare_exchanges",
    "delay_exchange",
    "delay_queue",
    "event_stream",
]

RPC_EXCHANGE: Final = "postbus.calls"
CONTROL_EXCHANGE: Final = "postbus.control"
EVENT_EXCHANGE: Final = "postbus.events"

# Headers of events that are tried again, and of dead letters.
ATTEMPT: Final = "x-postbus-attempt"
REASON: Final = "x-postbus-reason"
MESSAGE: Final = "x-postbus-message"
CONSUMER: Final = "x-postbus-consumer"
TIME: Final = "x-postbus-time"

_DELIVERY_LIMIT: Final = 10
"""Deliveries of an event that ends its consumer each time, before it is a dead letter."""
_QUORUM: Final = {"x-queue-type": "quorum"}
_SAFE_DEAD_LETTERS: Final = {
    "x-dead-letter-exchange": "",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


class TopologyError(RuntimeError):
    """The broker has a queue or an exchange under our name that is not what we need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A durable queue. `exchange` is bound to it by `keys`."""

    name: str
    arguments: Mapping[str, str | int]
    exchange: str = ""
    keys: Sequence[str] = ()


STREAM: Final = Queue(
    name="postbus.events.stream",
    arguments={
        "x-queue-type": "stream",
        "x-max-age": "7D",
        "x-max-length-bytes": 2**30,
        "x-stream-max-segment-size-bytes": 2**24,
    },
    exchange=EVENT_EXCHANGE,
    keys=("#",),
)
"""All events, to be read again from any point."""


def event_stream(name: str, types: Sequence[str]) -> Queue:
    """Return the stream with events of some types, kept for at least `KEPT_SECONDS`."""
    return Queue(
        name=name,
        arguments={
            "x-queue-type": "stream",
            "x-max-age": f"{KEPT_SECONDS}s",
            "x-max-length-bytes": 2**27,
            "x-stream-max-segment-size-bytes": 2**20,
        },
        exchange=EVENT_EXCHANGE,
        keys=types,
    )


def consumer_queue(name: str, types: Sequence[str]) -> Queue:
    """The events that a consumer has not dealt with yet."""
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
    """The events that a consumer could not deal with; whoever looks at one delivers it again."""
    return Queue(name=f"{queue}.dead", arguments=_QUORUM | {"x-delivery-limit": 2**31 - 1})


def delay_exchange(seconds: float) -> str:
    """Takes what is to be tried again after a time, with its queue as the routing key."""
    return f"postbus.delay.{round(seconds * 1000)}ms"


def delay_queue(seconds: float) -> Queue:
    """Where it waits meanwhile; it then goes to the queue that its routing key names."""
    name = delay_exchange(seconds)
    arguments = _QUORUM | _SAFE_DEAD_LETTERS | {"x-message-ttl": round(seconds * 1000)}
    return Queue(name=name, arguments=arguments, exchange=name, keys=("",))


async def declare_exchanges(link: Link, channel: AbstractChannel) -> None:
    """Declare what everyone needs."""
    await channel.declare_exchange(RPC_EXCHANGE, "direct", durable=True)  # cheaper than topic
    for name in (CONTROL_EXCHANGE, EVENT_EXCHANGE):
        await channel.declare_exchange(name, "topic", durable=True)
    await declare(link, STREAM)


async def declare(link: Link, queue: Queue) -> None:
    """Make sure that the broker has the queue; TopologyError, in words, if it has another."""
    try:
        async with link.scratch() as channel:
            if queue.exchange.startswith("postbus.delay."):
                await channel.declare_exchange(queue.exchange, "fanout", durable=True)
            declared = await channel.declare_queue(
                queue.name, durable=True, arguments=dict(queue.arguments)
            )
            for key in queue.keys:
                await declared.bind(queue.exchange, key)
    except ChannelPreconditionFailed as error:
        raise TopologyError(_difference(queue.name, str(error))) from None


async def consumers(link: Link, name: str) -> int | None:
    """Return how many consume a queue; None if there is no such queue."""
    try:
        async with link.scratch() as channel:
            queue = await channel.declare_queue(name, passive=True)
    except ChannelNotFoundEntity:
        return None
    return queue.declaration_result.consumer_count or 0


_INEQUIVALENT: Final = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for \w+ '(?P<name>[^']+)'.*?: received (?P<ours>.*?)"
    r" but current is (?P<theirs>.*)",
    re.DOTALL,
)


def _difference(name: str, refusal: str) -> str:
    """Put the broker's refusal into words that say what is where."""
    found = _INEQUIVALENT.search(refusal)
    if found is None:
        return f"The broker refuses the queue {name}: {refusal}"
    ours, theirs = (_value(found[side]) for side in ("ours", "theirs"))
    return (
        f"The queue {found['name']} has {found['argument']} {theirs} at the broker,"
        f" and {ours} in this version."
    )


def _value(text: str) -> str:
    value = re.search(r"value '([^']*)'", text)
    return value[1] if value else text.strip().strip("'\"").removesuffix('")')
