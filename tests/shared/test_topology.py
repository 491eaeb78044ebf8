"""Queues at the broker: their contents and their migration."""

import asyncio
from collections.abc import AsyncIterator, Callable

import aio_pika
import pytest
import structlog
import structlog.testing
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from pydantic import SecretStr

from postbus.bus.v1 import Event
from shared.bus.amqp import connect
from shared.bus.amqp.amqp_bus import AmqpBus
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.topology import Queue, TopologyError
from shared.bus.message_bus import Failure
from shared.wire import decode, encode

Unique = Callable[[str], str]


@pytest.fixture
async def bus(vhost: str) -> AsyncIterator[AmqpBus]:
    async with connect(SecretStr(vhost), "test", delays=(0.05,)) as connected:
        await connected.wait_ready()
        yield connected


@pytest.fixture
async def channel(vhost: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(vhost) as connection:
        yield await connection.channel()


async def _ack(message: AbstractIncomingMessage) -> None:
    await message.ack()


async def ignore(_body: bytes) -> Failure | None:
    return None


async def test_error_for_other_queue_arguments_names_the_difference(
    vhost: str, channel: AbstractChannel, unique: Unique
) -> None:
    name = unique("queue.")
    await channel.declare_queue(name, durable=True, arguments={"x-max-length": 5})

    async with BrokerConnection.open(vhost, "test") as connection:
        with pytest.raises(TopologyError) as raised:
            await connection.declare(Queue(name=name, arguments={"x-max-length": 10}))

    assert str(raised.value) == (
        f"The queue {name} has x-max-length 5 at the broker, and 10 in this version."
    )


async def test_queue_of_an_older_version_is_replaced_with_its_messages(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    event, name = unique("event."), unique("queue.")
    old = await channel.declare_queue(name, durable=True)
    await old.bind("postbus.events", event)
    for number in range(300):
        await bus.publish(Event(id=str(number), type=event, data=b"%d" % number))
    received: asyncio.Queue[int] = asyncio.Queue()

    async def keep(body: bytes) -> Failure | None:
        received.put_nowait(int(decode(Event, body).data))
        return None

    async with asyncio.timeout(20):
        subscription = await bus.subscribe([event], keep, queue=name)
        numbers = [await received.get() for _ in range(300)]
        await bus.publish(Event(id="new", type=event, data=b"300"))
        numbers.append(await received.get())

    assert numbers == list(range(301))
    assert received.empty()
    await subscription.cancel()


async def test_queue_with_consumers_is_not_replaced(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    event, name = unique("event."), unique("queue.")
    old = await channel.declare_queue(name, durable=True)
    tag = await old.consume(_ack)

    with structlog.testing.capture_logs() as logs:
        subscribing = asyncio.create_task(bus.subscribe([event], ignore, queue=name))
        async with asyncio.timeout(20):
            while not any(each["event"] == "consumer.not_started" for each in logs):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    assert not subscribing.done()
    assert await channel.get_queue(name, ensure=True)  # the old queue is there

    await old.cancel(tag)
    async with asyncio.timeout(20):
        await (await subscribing).cancel()


async def test_event_that_kills_its_consumer_each_time_becomes_a_dead_letter(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    event, name = unique("event."), unique("queue.")
    await (await bus.subscribe([event], ignore, queue=name)).cancel()
    await bus.publish(Event(id="1", type=event, data=b"poison"))

    queue = await channel.get_queue(name, ensure=False)
    dead = await channel.get_queue(f"{name}.dead", ensure=False)
    deliveries = 0
    async with asyncio.timeout(20):
        while (letter := await dead.get(fail=False)) is None:
            if message := await queue.get(fail=False):
                deliveries += 1
                await message.reject(requeue=True)

    assert deliveries == 11
    assert letter.headers["x-first-death-reason"] == "delivery_limit"
    assert decode(Event, letter.body).data == b"poison"


async def test_stream_contains_all_events(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    events = [Event(id=unique("id-"), type="postbus.test.v1.Streamed") for _ in range(20)]
    for event in events:
        await bus.publish(event)

    await channel.set_qos(50)
    stream = await channel.get_queue("postbus.events.stream", ensure=False)
    read: list[bytes] = []

    async def keep(message: AbstractIncomingMessage) -> None:
        read.append(message.body)
        await message.ack()

    await stream.consume(keep, arguments={"x-stream-offset": "first"})
    wanted = [encode(event) for event in events]
    async with asyncio.timeout(5):
        while [each for each in read if each in wanted] != wanted:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.02)
