"""Queues at the broker: their contents and their migration."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import aio_pika
import pytest
import structlog
import structlog.testing
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.exceptions import ChannelNotFoundEntity, PublishError
from pamqp.commands import Queue as QueueClass

from postbus.bus.v1 import Event
from shared.bus.amqp.amqp_bus import AmqpBus
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.declarations import Queue, TopologyError
from shared.bus.amqp.queue_migration import declare_or_replace
from shared.bus.amqp.topology import (
    all_events,
    consumer_queue,
    dead_letters,
    delay_queue,
    event_stream,
    method_queue,
    owner,
    service_exchanges,
)
from shared.bus.message_bus import Failure
from shared.limited_log import LimitedLog
from shared.wire import decode, encode
from tests.buses import a_call, echo, ignore, opened_bus
from tests.messages import EVENTS

Unique = Callable[[str], str]


@pytest.fixture
async def bus(vhost: str) -> AsyncIterator[AmqpBus]:
    async with opened_bus(vhost, delays=(0.05,), keep_events=True) as connected:
        yield connected


@pytest.fixture
async def channel(vhost: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(vhost) as connection:
        yield await connection.channel()


async def _ack(message: AbstractIncomingMessage) -> None:
    await message.ack()


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
    event, name = unique("postbus.test.v1.Event"), unique("queue.")
    old = await channel.declare_queue(name, durable=True)
    await old.bind(EVENTS, event)
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
    event, name = unique("postbus.test.v1.Event"), unique("queue.")
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
    event, name = unique("postbus.test.v1.Event"), unique("queue.")
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
    stream = await channel.get_queue("gateway.events", ensure=False)
    read: list[bytes] = []

    async def keep(message: AbstractIncomingMessage) -> None:
        read.append(message.body)
        await message.ack()

    await stream.consume(keep, arguments={"x-stream-offset": "first"})
    wanted = [encode(event) for event in events]
    async with asyncio.timeout(5):
        while [each for each in read if each in wanted] != wanted:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.02)


async def test_queue_of_calls_without_a_consumer_is_deleted(vhost: str, unique: Unique) -> None:
    """A publication shows that it exists: a declaration would prolong its life."""
    route = unique("postbus.test.v1.Route")
    async with (
        BrokerConnection.open(vhost, "test") as connection,
        await aio_pika.connect(vhost) as publisher,
    ):
        channel = await publisher.channel(on_return_raises=True)
        queue = method_queue("test", unique("queue."), route)
        await connection.declare(*service_exchanges("test"), queue)
        retry = await channel.get_exchange("postbus.retry.test")

        async def publish() -> None:
            await retry.publish(aio_pika.Message(b""), route)

        await publish()
        async with asyncio.timeout(5):
            with suppress(PublishError):
                while True:
                    await publish()
                    await asyncio.sleep(0.1)


def test_queue_of_calls_goes_with_its_node() -> None:
    """The name of a durable queue cannot be declared elsewhere while its node is down."""
    declare, _ = method_queue("test", "name", "route").methods()

    assert isinstance(declare, QueueClass.Declare)
    assert not declare.durable
    assert not declare.exclusive


def test_dead_letter_may_be_displayed_any_number_of_times() -> None:
    """RabbitMQ 4 drops a message of a quorum queue after 20 deliveries by default."""
    assert dead_letters("test", "queue").arguments["x-delivery-limit"] == 2_147_483_647


def test_streams_are_bounded() -> None:
    assert all_events().arguments == {
        "x-queue-type": "stream",
        "x-max-age": "7D",
        "x-max-length-bytes": 1_073_741_824,
        "x-stream-max-segment-size-bytes": 1_048_576,
    }
    assert event_stream("test", "name").arguments == {
        "x-queue-type": "stream",
        "x-max-age": "3600s",
        "x-max-length-bytes": 134_217_728,
        "x-stream-max-segment-size-bytes": 1_048_576,
    }


@pytest.mark.parametrize("queue", [consumer_queue("test", "name"), delay_queue("test", 0.5)])
def test_no_event_is_lost_between_two_queues(queue: Queue) -> None:
    """RabbitMQ: quorum queues, at-least-once dead lettering, which needs reject-publish."""
    assert queue.arguments["x-queue-type"] == "quorum"
    assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"
    assert queue.arguments["x-overflow"] == "reject-publish"


async def test_queue_that_another_connection_replaces_is_left_alone(
    vhost: str, channel: AbstractChannel, unique: Unique
) -> None:
    name = unique("queue.")
    queue = consumer_queue("test", name)
    await channel.declare_queue(name, durable=True)
    await channel.default_exchange.publish(aio_pika.Message(b"kept"), name)
    lock = await channel.declare_queue(f"{name}.lock", exclusive=True)

    async with BrokerConnection.open(vhost, "test") as connection:
        with pytest.raises(TopologyError, match="at the broker"):
            await declare_or_replace(connection, "test", queue, [], LimitedLog())
        old = await channel.declare_queue(name, durable=True)
        assert old.declaration_result.message_count == 1
        await connection.declare(*service_exchanges("test"))

        await lock.delete()
        await declare_or_replace(connection, "test", queue, [], LimitedLog())
    message = await (await channel.get_queue(name, ensure=False)).get()
    assert message is not None
    assert message.body == b"kept"
    await message.ack()


async def test_interrupted_replacement_of_a_queue_is_finished(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    event, name, received = unique("postbus.test.v1.Event"), unique("queue."), asyncio.Event()
    moving = consumer_queue("test", name)
    interim = await channel.declare_queue(
        f"{name}.migrating", durable=True, arguments=dict(moving.arguments)
    )
    await interim.bind(EVENTS, event)
    await channel.default_exchange.publish(aio_pika.Message(b"moved"), interim.name)

    async def keep(body: bytes) -> Failure | None:
        assert body == b"moved"
        received.set()
        return None

    subscription = await bus.subscribe([event], keep, queue=name)
    async with asyncio.timeout(5):
        await received.wait()
    with pytest.raises(ChannelNotFoundEntity):
        await channel.declare_queue(interim.name, passive=True)
    await subscription.cancel()


@pytest.mark.parametrize(
    ("name", "service"),
    [
        ("postbus.users.v1.UserDeleted", "users"),
        ("postbus.posts.v1.PostsService.GetPost", "posts"),
        ("postbus.bus.v1.HealthService.Check.posts", "posts"),
        ("nonsense", "nonsense"),
        ("", ""),
    ],
)
def test_owner_of_a_name_is_a_service(name: str, service: str) -> None:
    assert owner(name) == service


async def test_worker_joins_the_durable_queues_of_calls_of_an_older_one(
    vhost: str, unique: Unique
) -> None:
    """Both serve until the older one stops; the queue is deleted with its last consumer."""
    route, name = f"postbus.bus.v1.{unique('Route')}.test", unique("queue.")
    async with opened_bus(vhost) as bus, await aio_pika.connect(vhost) as connection:
        channel = await connection.channel()
        older = await channel.declare_queue(
            f"{name}.{route}", durable=True, auto_delete=True, arguments={"x-expires": 1000}
        )
        tag = await older.consume(_ack)
        async with asyncio.timeout(5):
            server = await bus.serve(name, [route], echo)
        await older.cancel(tag)

        assert (await bus.call(route, a_call(b"x"))).payload == b"x"
        # the start that failed has left no consumer of control messages
        assert len(await bus.broadcast(route, a_call(seconds=0.3))) == 1
        await server.cancel()
        server = await bus.serve(name, [route], echo)
        await server.cancel()
