"""Queues whose arguments have changed: replaced, with all that is in them."""

import asyncio
from dataclasses import replace

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelLockedResource

from shared.bus.amqp.broker_connection import Link
from shared.bus.amqp.topology import Queue, TopologyError, consumers, declare

__all__ = ["prepare"]

_log = structlog.get_logger()


async def prepare(link: Link, queue: Queue) -> None:
    """Declare a queue; where the broker has it with other arguments, replace it.

    Nothing is lost: what comes meanwhile waits in a queue `NAME.migrating`, through which the
    messages move as well. An interrupted move is finished by the next one. Raises TopologyError,
    which tells the difference, while the old queue still has consumers.
    """
    interim = replace(queue, name=f"{queue.name}.migrating")
    try:
        await declare(link, queue)
    except TopologyError as difference:
        async with _lock(link, queue, difference):
            if await consumers(link, queue.name):
                raise TopologyError(
                    f"{difference} It is replaced once no older worker consumes it."
                ) from None
            _log.warning("queue.migrating", queue=queue.name, difference=str(difference))
            await declare(link, interim)
            await _empty(link, queue, interim.name)
            await declare(link, queue)
            await _empty(link, interim, queue.name)
    else:
        if await consumers(link, interim.name) is not None:
            async with _lock(link, queue, TopologyError(f"{queue.name} is being replaced.")):
                await _empty(link, interim, queue.name)


class _lock:  # noqa: N801  # a context manager
    """Keeps others from migrating the same queue: a queue that only one connection may have."""

    def __init__(self, link: Link, queue: Queue, otherwise: TopologyError) -> None:
        self._link = link
        self._name = f"{queue.name}.lock"
        self._otherwise = otherwise

    async def __aenter__(self) -> None:
        try:
            async with self._link.scratch() as channel:
                await channel.declare_queue(self._name, exclusive=True)
        except ChannelLockedResource:
            raise self._otherwise from None

    async def __aexit__(self, *_error: object) -> None:
        async with self._link.scratch() as channel:
            await channel.queue_delete(self._name)


async def _empty(link: Link, source: Queue, target: str) -> None:
    """Move everything to another queue, one message at a time, and delete the queue."""
    async with link.scratch() as channel:
        queue = await channel.declare_queue(source.name, passive=True)
        for key in source.keys:
            await queue.unbind(source.exchange, key)
        while True:
            await _move_all(channel, source.name, target)
            state = await channel.declare_queue(source.name, passive=True)
            if not state.declaration_result.message_count:
                gone = await channel.queue_delete(source.name)  # quorum queues know no if-empty
                if gone.message_count:
                    _log.error("queue.lost_events", queue=source.name, count=gone.message_count)
                return
            await asyncio.sleep(0.05)


async def _move_all(channel: AbstractChannel, source: str, target: str) -> None:
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
