"""Replaces queues with changed arguments, and keeps their messages."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractExchange
from aiormq.exceptions import ChannelLockedResource

from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_errors import MissingError
from shared.bus.amqp.declarations import Binding, Queue, TopologyError
from shared.bus.amqp.topology import exchange
from shared.limited_log import LimitedLog

__all__ = ["bind_present", "declare_or_replace"]

_log = structlog.get_logger()


async def declare_or_replace(
    connection: BrokerConnection,
    service: str,
    queue: Queue,
    events: Sequence[Binding],
    log: LimitedLog,
) -> None:
    """Declare a queue; if it exists with other arguments, replace it and keep its messages.

    All messages, new ones of `events` included, are moved through the queue `NAME.migrating`. The
    next call finishes an interrupted move. Raises TopologyError with the difference while the old
    queue has consumers, and while another connection moves the messages.
    """
    name = f"{queue.name}.migrating"
    bindings = [Binding(name, exchange("retry", service), name)]
    interim = replace(queue, name=name, bindings=bindings)
    to_interim, back = _Move(service, queue.name, name, log), _Move(service, name, queue.name, log)
    try:
        await connection.declare(queue)
    except TopologyError as difference:
        async with _lock(connection, queue, difference):
            if await connection.consumer_count(queue.name):
                raise TopologyError(
                    f"{difference} It is replaced once no older worker consumes it."
                ) from None
            _log.warning("queue.migrating", queue=queue.name, difference=str(difference))
            await connection.declare(interim)
            await bind_present(connection, [replace(each, queue=name) for each in events])
            await to_interim.run(connection, events)
            await connection.declare(queue)
            await bind_present(connection, events)
            await back.run(connection, events)
    else:
        if await connection.consumer_count(name) is not None:
            busy = TopologyError(f"The queue {queue.name} is being replaced.")
            async with _lock(connection, queue, busy):
                await bind_present(connection, events)
                await back.run(connection, events)


async def bind_present(connection: BrokerConnection, bindings: Sequence[Binding]) -> list[Binding]:
    """Make the bindings to existing exchanges; return the remaining bindings."""
    by_exchange: dict[str, list[Binding]] = {}
    for binding in bindings:
        by_exchange.setdefault(binding.exchange, []).append(binding)

    async def bind(group: list[Binding]) -> list[Binding]:
        try:
            await connection.declare(*group)
        except MissingError:
            return group
        return []

    missing = await asyncio.gather(*(bind(group) for group in by_exchange.values()))
    return [binding for group in missing for binding in group]


@asynccontextmanager
async def _lock(
    connection: BrokerConnection, queue: Queue, error: TopologyError
) -> AsyncIterator[None]:
    """Hold a lock on the migration of a queue; raise `error` if another connection has it.

    The lock is an exclusive queue: the broker deletes it with its connection.
    """
    name = f"{queue.name}.lock"
    try:
        async with connection.disposable_channel() as channel:
            await channel.declare_queue(name, exclusive=True)
    except ChannelLockedResource:
        raise error from None
    try:
        yield
    finally:
        async with connection.disposable_channel() as channel:
            await channel.queue_delete(name)


@dataclass(frozen=True, slots=True)
class _Move:
    """Moves all messages of a queue to another queue, and deletes the emptied queue."""

    service: str
    source: str
    target: str
    log: LimitedLog

    async def run(self, connection: BrokerConnection, events: Sequence[Binding]) -> None:
        """Move one message at a time. `events` are the bindings of the queue, by any name."""
        for binding in events:
            with suppress(MissingError):
                await connection.request_all([replace(binding, queue=self.source).removal()])
        async with connection.disposable_channel(confirms=True) as channel:
            retry = await channel.get_exchange(exchange("retry", self.service), ensure=False)
            while True:
                await self._move_ready(channel, retry)
                state = await channel.declare_queue(self.source, passive=True)
                if not state.declaration_result.message_count:
                    # quorum queues do not support if-empty
                    deleted = await channel.queue_delete(self.source)
                    if deleted.message_count:
                        lost = deleted.message_count
                        self.log.write(
                            logging.ERROR, "queue.lost_events", queue=self.source, count=lost
                        )
                    return
                await asyncio.sleep(0.05)

    async def _move_ready(self, channel: AbstractChannel, retry: AbstractExchange) -> None:
        queue = await channel.get_queue(self.source, ensure=False)
        while (message := await queue.get(fail=False, timeout=5)) is not None:
            copy = Message(
                message.body,
                headers=message.headers,
                content_type=message.content_type,
                delivery_mode=DeliveryMode.PERSISTENT,
                message_id=message.message_id,
                type=message.type,
                user_id=self.service,
            )
            await retry.publish(copy, self.target)
            await message.ack()
