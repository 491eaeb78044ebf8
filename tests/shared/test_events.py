"""Consumers of events on the broker: acknowledgement, retries and dead letters."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from postbus.bus.v1 import Event
from shared.bus.amqp import AmqpBus
from shared.bus.message_bus import Failure
from shared.wire import decode, encode
from tests.buses import opened_bus
from tests.messages import EVENTS, message

Unique = Callable[[str], str]


@asynccontextmanager
async def connected_bus(vhost: str) -> AsyncIterator[AmqpBus]:
    async with opened_bus(vhost, delays=(0.02, 0.02)) as opened:
        yield opened


@pytest.fixture
async def bus(vhost: str) -> AsyncIterator[AmqpBus]:
    async with connected_bus(vhost) as opened:
        yield opened


@pytest.fixture
async def channel(vhost: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(vhost) as connection:
        yield await connection.channel()


async def take(channel: AbstractChannel, queue: str) -> AbstractIncomingMessage:
    """Wait for a message of a queue and return it."""
    source = await channel.get_queue(queue, ensure=False)
    async with asyncio.timeout(5):
        while (message := await source.get(fail=False)) is None:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.02)
    await message.ack()
    return message


async def test_handled_event_is_not_delivered_again(vhost: str, unique: Unique) -> None:
    event, queue = unique("postbus.test.v1.Event"), unique("queue.")
    handled: asyncio.Queue[str] = asyncio.Queue()

    async def keep(body: bytes) -> None:
        handled.put_nowait(decode(Event, body).id)

    async with connected_bus(vhost) as second:
        async with connected_bus(vhost) as first:
            await first.subscribe([event], keep, queue=queue)
            for number in range(3):
                await first.publish(Event(id=str(number), type=event))
            async with asyncio.timeout(5):
                assert [await handled.get() for _ in range(3)] == ["0", "1", "2"]
        subscription = await second.subscribe([event], keep, queue=queue)
        await second.publish(Event(id="last", type=event))
        async with asyncio.timeout(5):
            assert await handled.get() == "last"
        await subscription.cancel()


async def test_event_whose_consumer_dies_is_delivered_again(vhost: str, unique: Unique) -> None:
    event, queue = unique("postbus.test.v1.Event"), unique("queue.")
    begun, handled = asyncio.Event(), asyncio.Event()

    async def die(_body: bytes) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def keep(_body: bytes) -> None:
        handled.set()

    async with connected_bus(vhost) as second, asyncio.timeout(10):
        async with connected_bus(vhost) as first:
            await first.subscribe([event], die, queue=queue)
            await first.publish(Event(id="1", type=event))
            await begun.wait()
        subscription = await second.subscribe([event], keep, queue=queue)
        await handled.wait()
        await subscription.cancel()


async def test_consumer_holds_32_events_at_most(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    event, name = unique("postbus.test.v1.Event"), unique("queue.")
    held, release = list[bytes](), asyncio.Event()

    async def hold(body: bytes) -> None:
        held.append(body)
        await release.wait()

    subscription = await bus.subscribe([event], hold, queue=name)
    for number in range(40):
        await bus.publish(Event(id=str(number), type=event))
    async with asyncio.timeout(5):
        while True:
            queue = await channel.declare_queue(name, passive=True)
            if len(held) + (queue.declaration_result.message_count or 0) == 40:
                break

    assert len(held) == 32
    release.set()
    async with asyncio.timeout(5):
        while len(held) < 40:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)
    await subscription.cancel()


async def test_message_of_a_dead_letter_has_1000_characters_at_most(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    event, queue = unique("postbus.test.v1.Event"), unique("queue.")

    async def refuse(_body: bytes) -> Failure | None:
        return Failure(reason="BROKEN", message="x" * 5_000, retry=False)

    subscription = await bus.subscribe([event], refuse, queue=queue)
    await bus.publish(Event(id="1", type=event))
    letter = await take(channel, f"{queue}.dead")

    assert letter.headers["x-postbus-message"] == "x" * 1_000
    assert letter.headers["x-postbus-consumer"] == queue
    await subscription.cancel()


async def test_event_whose_handler_raises_becomes_a_dead_letter(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    event, queue = unique("postbus.test.v1.Event"), unique("queue.")

    async def fail(_body: bytes) -> Failure | None:
        raise RuntimeError("unforeseen")

    subscription = await bus.subscribe([event], fail, queue=queue)
    await bus.publish(Event(id="1", type=event))

    assert decode(Event, (await take(channel, f"{queue}.dead")).body).id == "1"
    await subscription.cancel()


@pytest.mark.parametrize("attempt", [-3, 0, 2**40, "2", True, [1], None], ids=repr)
async def test_invalid_attempt_of_an_event_counts_as_the_first(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique, attempt: Any
) -> None:
    event, queue, attempts = unique("postbus.test.v1.Event"), unique("queue."), 0

    async def fail(_body: bytes) -> Failure | None:
        nonlocal attempts
        attempts += 1
        return Failure(reason="LATER", message="Later.", retry=True)

    subscription = await bus.subscribe([event], fail, queue=queue)
    exchange = await channel.get_exchange(EVENTS)
    headers = {} if attempt is None else {"x-postbus-attempt": attempt}
    body = encode(Event(id="1", type=event))
    await exchange.publish(message(body, headers=headers), event)
    letter = await take(channel, f"{queue}.dead")

    assert letter.headers["x-postbus-reason"] == "LATER"
    assert letter.headers["x-postbus-attempt"] == attempts == 3
    await subscription.cancel()
