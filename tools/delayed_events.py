"""Events that wait in the delay queues of the services before a retry."""

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC
from typing import Any, Final

from aio_pika.abc import AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aiormq.exceptions import PublishError

from shared.bus.amqp import topology
from shared.errors import ServiceError
from shared.wire import parse
from tools.broker_queues import MAX_MESSAGES, messages_of, open_retry_exchange, return_to_consumer

__all__ = ["delay_queues", "list_delayed", "release"]

_NAME: Final = re.compile(r".+\.delay\.(?P<milliseconds>\d+)")


def delay_queues(names: Sequence[str]) -> list[str]:
    """Return the delay queues of the services, and of older versions, from a list of queues."""
    return [name for name in names if _NAME.fullmatch(name)]


async def list_delayed(connection: AbstractConnection, queues: Sequence[str]) -> bool:
    """Print the number of delayed events and the time of the oldest, by consumer.

    Returns whether there are any.
    """
    counts, oldest = Counter[str](), dict[str, str]()
    for queue in queues:
        async with messages_of(connection, queue) as messages:
            for message in messages:
                consumer = message.routing_key or ""
                counts[consumer] += 1
                oldest[consumer] = min(oldest.get(consumer, "~"), _time(message))
    for consumer, count in sorted(counts.items()):
        print(f"{count:8}  {consumer}  delayed (oldest event: {oldest[consumer]})")
    return bool(counts)


async def release(
    connection: AbstractConnection, queues: Sequence[str], consumer: str | None
) -> int:
    """Move the delayed events of a consumer, or of all, to its queue; return the exit code."""
    moved, kept = Counter[str](), Counter[str]()
    exchanges: dict[str, AbstractExchange] = {}
    for queue in queues:
        async with messages_of(connection, queue) as messages:
            for message in messages:
                target = message.routing_key or ""
                if consumer not in {None, target}:
                    continue
                if target not in exchanges:
                    exchanges[target] = await open_retry_exchange(connection, target)
                done = await _release(exchanges[target], message, target)
                (moved if done else kept)[target] += 1
            if len(messages) == MAX_MESSAGES:
                print(f"dlq: {queue} may have more than {MAX_MESSAGES} events: run it again")
    for target, count in sorted(moved.items()):
        print(f"dlq: {count} released to {target}")
    for target, count in sorted(kept.items()):
        print(f"dlq: {count} still delayed: there is no queue {target}")
    if not moved and not kept:
        print("dlq: no delayed events" + (f" of {consumer}" if consumer else ""))
    return 1 if kept or (consumer and not moved) else 0


async def _release(
    retry: AbstractExchange, message: AbstractIncomingMessage, consumer: str
) -> bool:
    """Move an event to its consumer; False if the queue of the consumer does not exist."""
    headers = {
        name: message.headers[name]
        for name in (topology.ATTEMPT, topology.REASON)
        if name in message.headers
    }
    try:
        await return_to_consumer(retry, message, consumer, **headers)
    except PublishError:
        return False
    return True


def _time(message: AbstractIncomingMessage) -> str:
    try:
        event: Any = parse("postbus.bus.v1.Event", message.body)
        return str(event.time.ToDatetime(UTC).isoformat(timespec="seconds"))
    except (ServiceError, ValueError):  # ValueError: outside the years 1 to 9999
        return "unknown"
