"""How long the broker keeps events and dead letters, which can contain personal data."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from shared.bus.amqp.topology import all_events, dead_letters
from tests.people import eventually

Unique = Callable[[str], str]
BLOCK = 2**18


@pytest.fixture
async def channel(vhost: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(vhost) as connection:
        yield await connection.channel()


async def first_offset(channel: AbstractChannel, queue: AbstractQueue) -> int:
    """Return the offset of the oldest message of a stream."""
    found: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    await channel.set_qos(1)
    tag = await queue.consume(found.put, arguments={"x-stream-offset": "first"})
    async with asyncio.timeout(5):
        message = await found.get()
    await queue.cancel(tag)
    await message.ack()
    return int(str(message.headers["x-stream-offset"]))


async def test_event_is_deleted_once_it_is_old_and_two_more_mebibytes_are_published(
    channel: AbstractChannel, unique: Unique
) -> None:
    arguments: dict[str, Any] = {**all_events().arguments, "x-max-age": "1s"}
    stream = await channel.declare_queue(unique("stream."), durable=True, arguments=arguments)

    async def publish(body: bytes) -> None:
        await channel.default_exchange.publish(aio_pika.Message(body), stream.name)

    await publish(b"personal data")
    for _ in range(5):
        await publish(bytes(BLOCK))
    assert await first_offset(channel, stream) == 0
    await asyncio.sleep(1.1)  # the age; only newer events make the broker look at it
    for _ in range(5):
        await publish(bytes(BLOCK))

    async def deleted() -> bool:
        return await first_offset(channel, stream) > 0

    await eventually(deleted)
    await stream.delete()


def test_events_are_kept_for_seven_days_and_dead_letters_for_fourteen() -> None:
    assert all_events().arguments["x-max-age"] == "7D"
    assert dead_letters("service", "queue").arguments["x-message-ttl"] == 14 * 24 * 3600 * 1000


async def test_dead_letter_is_deleted_at_its_age(channel: AbstractChannel, unique: Unique) -> None:
    arguments: dict[str, Any] = {**dead_letters("service", "queue").arguments, "x-message-ttl": 100}
    queue = await channel.declare_queue(unique("dead."), durable=True, arguments=arguments)
    await channel.default_exchange.publish(aio_pika.Message(b"personal data"), queue.name)

    async def deleted() -> bool:
        state = await channel.declare_queue(queue.name, passive=True)
        return state.declaration_result.message_count == 0

    await eventually(deleted)
    await channel.queue_delete(queue.name)
