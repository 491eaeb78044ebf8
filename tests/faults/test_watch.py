"""The watch over exchanges, queues and bindings, and the events that are read again."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import aio_pika
import pytest
import structlog.testing
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelNotFoundEntity

from postbus.bus.v1 import Event
from shared.bus.amqp import event_replay
from shared.bus.amqp.amqp_bus import AmqpBus
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.declarations import Binding
from shared.bus.amqp.event_consumer import EventConsumer
from shared.bus.amqp.rpc_server import RpcServer
from shared.bus.amqp.topology_watch import watch
from shared.bus.message_bus import EventHandler, Failure
from shared.errors import ServiceError
from shared.wire import decode
from tests.buses import a_call, echo, opened_bus
from tests.conftest import new_vhost
from tests.messages import CALLS, EVENTS, publish_until_routed

pytestmark = pytest.mark.long

Unique = Callable[[str], str]


@pytest.fixture
async def url(unique: Unique) -> AsyncIterator[str]:
    async with new_vhost(unique("test_")) as url:
        yield url


@pytest.fixture
async def bus(url: str) -> AsyncIterator[AmqpBus]:
    async with opened_bus(url, delays=(0.05,), keep_events=True) as connected:
        await publish_until_routed(connected, Event(id="first", type="postbus.test.v1.First"))
        yield connected


@pytest.fixture
async def connection(url: str) -> AsyncIterator[aio_pika.abc.AbstractConnection]:
    async with await aio_pika.connect(url) as opened:
        yield opened


async def exists(connection: aio_pika.abc.AbstractConnection, *, queue: str = "") -> bool:
    """Return whether a queue exists, or the exchange of events."""
    channel: AbstractChannel = await connection.channel()
    try:
        if queue:
            await channel.declare_queue(queue, passive=True)
        else:
            await channel.get_exchange(EVENTS, ensure=True)
    except ChannelNotFoundEntity:
        return False
    await channel.close()
    return True


async def delete(connection: aio_pika.abc.AbstractConnection, queue: str) -> None:
    channel = await connection.channel()
    await channel.queue_delete(queue)
    await channel.close()


def consumer_of(handled: list[str]) -> EventHandler:
    """Return a handler that records the ids of the events."""

    async def keep(body: bytes) -> Failure | None:
        handled.append(decode(Event, body).id)
        return None

    return keep


async def test_event_that_no_queue_takes_is_not_published(url: str) -> None:
    async with opened_bus(url) as bus:
        with pytest.raises(ServiceError, match="EVENT_UNROUTED"):
            await bus.publish(Event(id="1", type="postbus.test.v1.Nobody"))


async def test_deleted_exchange_of_events_comes_back_after_its_consumers_have_missed_it(
    bus: AmqpBus, connection: aio_pika.abc.AbstractConnection
) -> None:
    session, event = bus._session, Event(id="1", type="postbus.test.v1.Event")
    await (await connection.channel()).exchange_delete(EVENTS)
    deleted = time.monotonic()
    publishing = asyncio.create_task(publish_until_routed(bus, event))
    while not await exists(connection):  # noqa: ASYNC110  # polls
        await asyncio.sleep(0.05)
    absent = time.monotonic() - deleted
    await publishing

    assert absent >= 2.4
    assert time.monotonic() - deleted - absent >= 1.5
    assert time.monotonic() - deleted <= 10
    assert bus._session is session


async def test_deleted_dead_letter_queue_is_there_again_without_an_event(
    bus: AmqpBus, connection: aio_pika.abc.AbstractConnection, unique: Unique
) -> None:
    name = unique("queue.")
    subscription = await bus.subscribe(
        ["postbus.test.v1.Event"],
        consumer_of([]),
        queue=name,
    )
    await delete(connection, f"{name}.dead")

    async with asyncio.timeout(8):
        while not await exists(connection, queue=f"{name}.dead"):  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.1)
    await subscription.cancel()


async def test_dead_letter_is_kept_although_its_queue_was_deleted(
    bus: AmqpBus, connection: aio_pika.abc.AbstractConnection, unique: Unique
) -> None:
    name, event = unique("queue."), "postbus.test.v1.Event"

    async def refuse(_body: bytes) -> Failure | None:
        return Failure(reason="BAD", message="Bad.", retry=False)

    subscription = await bus.subscribe([event], refuse, queue=name)
    await delete(connection, f"{name}.dead")
    await bus.publish(Event(id="bad", type=event))

    channel = await connection.channel()
    async with asyncio.timeout(10):
        while not await exists(connection, queue=f"{name}.dead"):  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.05)
        queue = await channel.get_queue(f"{name}.dead", ensure=False)
        while (letter := await queue.get(fail=False)) is None:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.05)
    assert decode(Event, letter.body).id == "bad"
    await letter.ack()
    await subscription.cancel()


async def test_consumer_whose_queue_was_deleted_reads_the_lost_events_again(
    bus: AmqpBus, connection: aio_pika.abc.AbstractConnection, unique: Unique
) -> None:
    name, event, handled = unique("queue."), "postbus.test.v1.Event", list[str]()
    subscription = await bus.subscribe([event], consumer_of(handled), queue=name)
    consumer = bus._consumers[-1]
    assert isinstance(consumer, EventConsumer)
    await asyncio.sleep(0)
    await consumer.stop()  # the event stays in the queue, as for a consumer that is too slow
    await bus.publish(Event(id="lost", type=event))
    assert handled == []

    with structlog.testing.capture_logs() as lines:
        await delete(connection, name)
        async with asyncio.timeout(15):
            while "consumer.replayed" not in {line["event"] for line in lines}:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.05)

    assert "lost" in handled
    [replays] = [line for line in lines if line["event"] == "consumer.replays"]
    assert 60 <= replays["seconds"] <= 90
    await subscription.cancel()


async def test_replay_reads_at_most_the_events_of_a_day(bus: AmqpBus, unique: Unique) -> None:
    event = "postbus.test.v1.Event"
    subscription = await bus.subscribe([event], consumer_of([]), queue=unique("queue."))
    consumer = bus._consumers[-1]
    assert isinstance(consumer, EventConsumer)
    consumer._replay.good_at = time.monotonic() - 10**6

    with structlog.testing.capture_logs() as lines:
        consumer.restored()

    assert [line["event"] for line in lines] == ["consumer.lost_events", "consumer.replays"]
    assert lines[1]["seconds"] == 86_400
    assert bus.incidents["consumer.lost_events"] == 1
    await subscription.cancel()


async def test_lost_stream_of_all_events_is_a_logged_loss(url: str, unique: Unique) -> None:
    async with opened_bus(url) as bus:
        subscription = await bus.subscribe(
            ["postbus.test.v1.Event"],
            consumer_of([]),
            queue=unique("queue."),
        )
        consumer, session = bus._consumers[-1], bus._session
        assert isinstance(consumer, EventConsumer)
        with structlog.testing.capture_logs() as lines:
            consumer.restored()
            async with asyncio.timeout(5):
                while "consumer.lost_events" not in {line["event"] for line in lines}:  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.02)
        assert bus._session is session
        assert bus.incidents["consumer.lost_events"] == 1
        await subscription.cancel()


async def test_replay_of_a_busy_stream_ends(
    bus: AmqpBus, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert event_replay._MAX_SECONDS == 120
    monkeypatch.setattr(event_replay, "_MAX_SECONDS", 0.5)
    event = "postbus.test.v1.Event"
    subscription = await bus.subscribe([event], consumer_of([]), queue=unique("queue."))
    consumer = bus._consumers[-1]
    assert isinstance(consumer, EventConsumer)

    with structlog.testing.capture_logs() as lines:
        consumer.restored()
        async with asyncio.timeout(10):
            while "consumer.replay_timed_out" not in {line["event"] for line in lines}:
                await bus.publish(Event(id=unique("id"), type=event))
    await subscription.cancel()


async def test_suspicions_start_five_checks_a_second_at_most(
    bus: AmqpBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, checks, restore = bus._session, list[float](), BrokerSession.restore
    assert session is not None

    async def counted(self: BrokerSession) -> bool:
        checks.append(time.monotonic())
        return await restore(self)

    monkeypatch.setattr(BrokerSession, "restore", counted)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        session.suspicious.set()
        await asyncio.sleep(0.01)

    assert 1 <= len(checks) <= 11


async def test_nothing_is_sent_on_a_closed_channel(bus: AmqpBus) -> None:
    """The broker closes the connection if a message is sent on a channel that it has closed."""
    session = bus._session
    assert session is not None
    channel = await session.publishing.channel(on_lost=lambda *_: None)
    channel.publish("no.such.exchange", "", b"\0\0", b"")
    async with asyncio.timeout(5):
        while not channel._underlay.is_closed:
            channel.publish("no.such.exchange", "", b"\0\0", b"")
            await asyncio.sleep(0)
    for _ in range(100):
        channel.publish("no.such.exchange", "", b"\0\0", b"")
    await publish_until_routed(bus, Event(id="1", type="postbus.test.v1.Event"))

    assert bus._session is session


async def test_binding_of_a_method_is_made_again_as_soon_as_its_own_service_misses_it(
    bus: AmqpBus, connection: aio_pika.abc.AbstractConnection, unique: Unique
) -> None:
    route, queue = unique("postbus.test.v1.Route"), unique("queue.")
    server = await bus.serve(queue, [route], echo)
    session, channel = bus._session, await connection.channel()
    served = await channel.get_queue(f"{queue}.{route}", ensure=False)
    await bus.call(route, a_call())
    times = list[float]()
    for _ in range(2):  # not both can be within a second before the next regular check
        await served.unbind(CALLS, route)
        missed = time.monotonic()
        with pytest.raises(ServiceError, match="NO_ROUTE"):
            await bus.call(route, a_call())
        async with asyncio.timeout(8):
            while not await is_served(bus, route):  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.02)
        times.append(time.monotonic() - missed)

    assert max(times) < 1.5
    assert bus._session is session
    await server.cancel()


async def is_served(bus: AmqpBus, route: str) -> bool:
    try:
        await bus.call(route, a_call())
    except ServiceError as error:
        assert error.reason == "NO_ROUTE"  # noqa: PT017
        return False
    return True


async def test_replay_that_a_lost_connection_has_ended_begins_again(
    bus: AmqpBus, unique: Unique
) -> None:
    event, handled = "postbus.test.v1.Event", list[str]()
    subscription = await bus.subscribe([event], consumer_of(handled), queue=unique("queue."))
    consumer, session = bus._consumers[-1], bus._session
    assert isinstance(consumer, EventConsumer)
    assert session is not None

    with structlog.testing.capture_logs() as lines:
        consumer.restored()
        session.mark_lost()
        async with asyncio.timeout(15):
            while "consumer.replayed" not in {line["event"] for line in lines}:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.02)

    assert bus.incidents["consumer.replays"] == 2
    assert bus.incidents["consumer.lost_events"] == 0
    await subscription.cancel()


async def test_worker_starts_again_if_a_queue_of_calls_is_missing(
    bus: AmqpBus, unique: Unique
) -> None:
    """A node that goes down can delete a queue without a message to its consumer."""
    await bus.serve(unique("test.queue."), ["postbus.test.v1.Route"], echo)
    session, (server,) = bus._session, bus._consumers
    assert session is not None
    assert isinstance(server, RpcServer)
    assert not await server.restore(session.publishing)
    server._queues.names["postbus.test.v1.Route"] = "test.missing"

    await server.restore(session.publishing)

    assert session.lost.is_set()
    async with asyncio.timeout(10):
        while not server.active:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)


class Recorded:
    """Records when it is checked."""

    def __init__(self) -> None:
        self.times = list[float]()

    def connection(self, session: BrokerSession) -> BrokerConnection | None:
        return session.publishing

    async def restore(self, _connection: BrokerConnection) -> bool:
        self.times.append(time.monotonic())
        return False

    def restored(self) -> None: ...

    def foreign(self) -> Sequence[Binding]:
        return []

    def checked(self, _missing: bool) -> None: ...


async def test_everything_is_checked_every_second_at_first(bus: AmqpBus) -> None:
    assert bus._session is not None
    recorded = Recorded()
    watching = asyncio.create_task(watch(bus._session, lambda: [recorded]))
    async with asyncio.timeout(10):
        while len(recorded.times) < 3:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.05)
    watching.cancel()

    assert recorded.times[2] - recorded.times[0] < 4
