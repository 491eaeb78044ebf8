"""Replaces queues with changed arguments, and keeps their messages."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelLockedResource

from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.topology import Queue, TopologyError

__all__ = ["declare_or_replace"]

_log = structlog.get_logger()


async def declare_or_replace(connection: BrokerConnection, queue: Queue) -> None:
    """Declare a queue; if it exists with other arguments, replace it and keep its messages.

    All messages, new ones included, are moved through the queue `NAME.migrating`. The
    next call finishes an interrupted move. Raises TopologyError with the difference while the old
    queue has consumers, and while another connection moves the messages.
    """
    interim = replace(queue, name=f"{queue.name}.migrating")
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
            await _move_messages(connection, queue, interim.name)
            await connection.declare(queue)
            await _move_messages(connection, interim, queue.name)
    else:
        if await connection.consumer_count(interim.name) is not None:
            busy = TopologyError(f"The queue {queue.name} is being replaced.")
            async with _lock(connection, queue, busy):
                await _move_messages(connection, interim, queue.name)


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


async def _move_messages(connection: BrokerConnection, source: Queue, target: str) -> None:
    """Move all messages to another queue, one at a time, and delete the emptied queue."""
    async with connection.disposable_channel() as channel:
        queue = await channel.declare_queue(source.name, passive=True)
        for key in source.keys:
            await queue.unbind(source.exchange, key)
        while True:
            await _move_ready(channel, source.name, target)
            state = await channel.declare_queue(source.name, passive=True)
            if not state.declaration_result.message_count:
                # quorum queues do not support if-empty
                deleted = await channel.queue_delete(source.name)
                if deleted.message_count:
                    _log.error("queue.lost_events", queue=source.name, count=deleted.message_count)
                return
            await asyncio.sleep(0.05)


async def _move_ready(channel: AbstractChannel, source: str, target: str) -> None:
    queue = await channel.get_queue(source, ensure=False)
    while (message := await queue.get(fail=False, timeout=5)) is not None:
        copy = Message(
            message.body,
            headers=message.headers,
            content_type=message.content_type,
            delivery_mode=DeliveryMode.PERSISTENT,
            message_id=message.message_id,
            type=message.type,
        )
        await channel.default_exchange.publish(copy, target)
        await message.ack()
