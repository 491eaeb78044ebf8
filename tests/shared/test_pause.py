"""Consumers pause while a dependency of their handler is unavailable, on a real broker."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aio_pika
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from postbus.bus.v1 import Event
from shared.bus.amqp import AmqpBus, connect, topology
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.event_consumer import EventConsumer
from shared.bus.amqp.pause import HOLD_SECONDS, RETURNED, Pause
from shared.bus.message_bus import Failure
from shared.limited_log import LimitedLog
from shared.wire import decode, encode
from tests.proxy import Proxy

pytestmark = pytest.mark.long

Unique = Callable[[str], str]

DOWN = Failure(reason="DATABASE_UNAVAILABLE", message="Down.", retry=True, dependency_down=True)
BUSY = Failure(reason="BUSY", message="Busy.", retry=True)


class Handler:
    """A handler with a database that can be down, and events with a fault of their own."""

    def __init__(self, *faulty: str, together: int = 0) -> None:
        """Return a handler whose first results come together, once it has so many deliveries."""
        self.together = together
        self.down = asyncio.Event()
        self.faulty = set(faulty)
        self.taken: list[str] = []
        self.handled = set[str]()

    async def __call__(self, body: bytes) -> Failure | None:
        id_ = decode(Event, body).id
        self.taken.append(id_)
        await self.until_taken(self.together)
        if self.down.is_set() or id_ in self.faulty:
            return DOWN
        self.handled.add(id_)
        return None

    async def until(self, *ids: str, seconds: float = 10) -> None:
        """Wait until these events are handled, in any order."""
        async with asyncio.timeout(seconds):
            while not self.handled.issuperset(ids):  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)

    async def until_taken(self, times: int) -> None:
        """Wait until the handler has run this often."""
        async with asyncio.timeout(10):
            while len(self.taken) < times:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)


@asynccontextmanager
async def opened(url: str, *delays: float) -> AsyncIterator[AmqpBus]:
    async with connect(SecretStr(url), "test", delays=delays or (0.05, 0.2, 30)) as bus:
        await bus.wait_ready()
        yield bus


@pytest.fixture
async def bus(vhost: str) -> AsyncIterator[AmqpBus]:
    async with opened(vhost) as connected:
        yield connected


async def publish(bus: AmqpBus, event: str, *ids: str) -> None:
    for id_ in ids:
        await bus.publish(Event(id=id_, type=event))


async def ready_in(vhost: str, queue: str) -> int:
    """Return the number of messages in a queue that no consumer has taken."""
    async with await aio_pika.connect(vhost) as connection:
        declared = await (await connection.channel()).declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


async def test_event_has_its_effect_soon_after_the_return_of_the_dependency(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    event, handler = unique("postbus.test.v1.Event"), Handler()
    subscription = await bus.subscribe([event], handler, queue=unique("test.queue."))
    handler.down.set()

    await publish(bus, event, "1", "2", "3")
    await asyncio.sleep(1)
    handler.down.clear()

    await handler.until("1", "2", "3", seconds=1.5)
    assert [await ready_in(vhost, f"test.delay.{each}") for each in (50, 200, 30000)] == [0, 0, 0]
    await publish(bus, event, "4")
    await handler.until("4")
    await subscription.cancel()


async def test_pause_of_many_probes_does_not_touch_the_delivery_limit(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    event, queue, handler = unique("postbus.test.v1.Event"), unique("test.queue."), Handler()
    subscription = await bus.subscribe([event], handler, queue=queue)
    handler.down.set()

    await publish(bus, event, "1")
    await handler.until_taken(6)
    await subscription.cancel()

    async with await aio_pika.connect(vhost) as connection:
        source = await (await connection.channel()).get_queue(queue, ensure=False)
        message = await source.get()
    assert message is not None
    assert message.headers.get("x-delivery-count", 0) == 0
    assert message.headers["x-postbus-attempt"] == 1


async def test_paused_consumer_takes_no_new_delivery(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    events, handler = [unique("postbus.test.v1.Event") for _ in range(2)], Handler()
    queues = [unique("test.queue.") for _ in events]
    subscriptions = [
        await bus.subscribe([event], handler, queue=queue)
        for event, queue in zip(events, queues, strict=True)
    ]
    handler.down.set()

    for event in events:
        await publish(bus, event, f"{event} held")
    await handler.until_taken(4)  # both queues are paused, and the first probes have failed
    for event in events:
        await publish(bus, event, *(f"{event} {number}" for number in range(50)))
    await handler.until_taken(len(handler.taken) + 4)

    assert set(handler.taken) == {f"{event} held" for event in events}
    assert [await ready_in(vhost, queue) for queue in queues] == [50, 50]
    handler.down.clear()
    await handler.until(*(f"{event} 49" for event in events))
    for subscription in subscriptions:
        await subscription.cancel()


async def test_paused_consumer_holds_32_deliveries_at_most(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    event, queue, handler = unique("postbus.test.v1.Event"), unique("test.queue."), Handler()
    handler.together = 32
    handler.down.set()
    subscription = await bus.subscribe([event], handler, queue=queue)

    await publish(bus, event, *map(str, range(100)))
    await handler.until_taken(32 + 9)  # there was time for a trial

    assert len(set(handler.taken)) == 32
    assert await ready_in(vhost, queue) == 100 - 32
    handler.down.clear()
    await handler.until(*map(str, range(100)))
    await subscription.cancel()


async def test_probes_come_after_delays_that_grow_to_a_second(bus: AmqpBus, unique: Unique) -> None:
    event, handler = unique("postbus.test.v1.Event"), Handler()
    handler.down.set()
    subscription = await bus.subscribe([event], handler, queue=unique("test.queue."))

    began = time.monotonic()
    await publish(bus, event, "1")
    await handler.until_taken(6)
    seconds = time.monotonic() - began

    assert seconds >= 1.7  # half of 0.2, 0.4, 0.8, 1 and 1
    handler.down.clear()
    await handler.until("1", seconds=1.5)
    await subscription.cancel()


async def test_probes_take_turns(bus: AmqpBus, unique: Unique) -> None:
    event, handler = unique("postbus.test.v1.Event"), Handler("bad", together=3)
    handler.down.set()
    subscription = await bus.subscribe([event], handler, queue=unique("test.queue."))

    await publish(bus, event, "1", "2", "bad")  # the last one is the first to fail
    await handler.until_taken(4)
    handler.down.clear()

    await handler.until("1", "2", seconds=2.5)
    await subscription.cancel()


async def test_event_that_fails_by_its_own_fault_goes_to_the_delays(
    vhost: str, unique: Unique
) -> None:
    event, queue, handler = unique("postbus.test.v1.Event"), unique("test.queue."), Handler("bad")
    async with opened(vhost, 30.5) as bus:
        subscription = await bus.subscribe([event], handler, queue=queue)

        await publish(bus, event, "bad")
        async with asyncio.timeout(20):
            number = 0
            while not await ready_in(vhost, "test.delay.30500"):
                number += 1
                await publish(bus, event, str(number))
                await asyncio.sleep(0.1)

        assert handler.taken.count("bad") >= 6
        await publish(bus, event, "last")
        await handler.until("last", seconds=1)
        await subscription.cancel()


async def test_event_that_fails_alone_does_not_stop_its_queue(bus: AmqpBus, unique: Unique) -> None:
    event, handler = unique("postbus.test.v1.Event"), Handler("bad", "worse")
    subscription = await bus.subscribe([event], handler, queue=unique("test.queue."))

    await publish(bus, event, "bad")
    await handler.until_taken(2)
    await publish(bus, event, "worse", "good")

    await handler.until("good", seconds=15)
    await subscription.cancel()


async def test_trial_takes_one_delivery(bus: AmqpBus, vhost: str, unique: Unique) -> None:
    event, queue, handler = unique("postbus.test.v1.Event"), unique("test.queue."), Handler()
    handler.down.set()
    subscription = await bus.subscribe([event], handler, queue=queue)

    await publish(bus, event, "first")
    await handler.until_taken(2)
    await publish(bus, event, *map(str, range(40)))
    async with asyncio.timeout(8):
        while len(set(handler.taken)) < 2:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.05)
    await handler.until_taken(len(handler.taken) + 2)

    assert await ready_in(vhost, queue) == 39
    handler.down.clear()
    await handler.until("first", "39")
    await subscription.cancel()


async def test_failures_of_another_kind_are_retried_with_the_delays(
    bus: AmqpBus, unique: Unique
) -> None:
    event, taken, handled = unique("postbus.test.v1.Event"), list[str](), asyncio.Event()

    async def busy_after_the_pause(body: bytes) -> Failure | None:
        taken.append(decode(Event, body).id)
        if len(taken) == 4:
            handled.set()
        return {1: DOWN, 2: BUSY, 3: BUSY}.get(len(taken))

    subscription = await bus.subscribe([event], busy_after_the_pause, queue=unique("test.queue."))
    await publish(bus, event, "1")

    await asyncio.wait_for(handled.wait(), 5)
    await subscription.cancel()


async def test_stop_during_a_pause_returns_the_held_events(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    event, queue, handler = unique("postbus.test.v1.Event"), unique("test.queue."), Handler()
    subscription = await bus.subscribe([event], handler, queue=queue)
    handler.down.set()
    await publish(bus, event, "1", "2")
    await handler.until_taken(3)

    began = time.monotonic()
    await subscription.cancel()

    assert time.monotonic() - began < 1
    assert await ready_in(vhost, queue) == 2
    handler.down.clear()
    again = await bus.subscribe([event], handler, queue=queue)
    await handler.until("1", "2")
    await again.cancel()


async def test_events_of_a_pause_are_delivered_again_after_a_lost_connection(
    vhost: str, unique: Unique
) -> None:
    event, handler = unique("postbus.test.v1.Event"), Handler()
    async with Proxy.open(vhost) as proxy, opened(proxy.url) as bus:
        subscription = await bus.subscribe([event], handler, queue=unique("test.queue."))
        handler.down.set()
        await publish(bus, event, "1")
        await handler.until_taken(2)

        proxy.break_()
        await bus.wait_ready()
        handler.down.clear()

        await handler.until("1")
        await bus.wait_ready()
        await publish(bus, event, "2")
        await handler.until("2")
        await subscription.cancel()


async def test_events_that_are_held_for_too_long_are_returned_and_taken_again(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    event, queue, handler = unique("postbus.test.v1.Event"), unique("test.queue."), Handler()
    assert HOLD_SECONDS == 20 * 60
    consumer = EventConsumer(
        queue,
        [event],
        handler,
        on_gap=None,
        delays=(0.05,),
        incidents=bus.incidents,
        hold_seconds=0.5,
    )
    subscription = await bus._start(consumer)
    handler.down.set()

    with capture_logs() as lines:
        await publish(bus, event, "1")
        await handler.until_taken(8)
    handler.down.clear()

    await handler.until("1")
    assert [line["event"] for line in lines if line["event"] == "consumer.paused"] == [
        "consumer.paused"
    ]
    await subscription.cancel()
    assert await ready_in(vhost, queue) == 0


async def test_event_that_is_held_for_too_long_is_returned(vhost: str, unique: Unique) -> None:
    queue, handler = topology.consumer_queue("test", unique("test.queue.")), Handler()
    handler.down.set()
    async with BrokerSession.open(vhost, "test") as session:
        await session.consuming.declare(queue)
        channel = await session.consuming.channel(prefetch=1)
        await channel.consume([queue.name], lambda _: None)
        pause = Pause(queue.name, channel, handler, prefetch=1, log=LimitedLog(), hold_seconds=0.5)

        async with asyncio.timeout(5):
            result = await pause.outlast(encode(Event(id="1")), DOWN)
        await pause.stop()

    assert result is RETURNED


async def test_resumed_consumer_takes_no_more_than_it_can_hold(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    event, queue, handler = unique("postbus.test.v1.Event"), unique("test.queue."), Handler()
    released, running = asyncio.Event(), set[str]()
    handler.together = 32

    async def hang_after_the_first(body: bytes) -> Failure | None:
        failure = await handler(body)
        if failure is None and len(handler.handled) > 1:
            running.add(decode(Event, body).id)
            await released.wait()
        return failure

    handler.down.set()
    subscription = await bus.subscribe([event], hang_after_the_first, queue=queue)
    await publish(bus, event, *map(str, range(100)))
    await handler.until_taken(33)
    handler.down.clear()
    async with asyncio.timeout(10):
        while len(running) < 32:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)

    assert len(set(handler.taken)) <= 34
    released.set()
    await handler.until(*map(str, range(100)))
    await publish(bus, event, *(f"again {number}" for number in range(3)))
    await handler.until("again 2")
    await subscription.cancel()


async def test_pause_is_logged_at_its_begin_and_end(bus: AmqpBus, unique: Unique) -> None:
    event, queue, handler = unique("postbus.test.v1.Event"), unique("test.queue."), Handler()
    subscription = await bus.subscribe([event], handler, queue=queue)
    handler.down.set()

    with capture_logs() as lines:
        await publish(bus, event, "1", "2", "3")
        await handler.until_taken(6)
        handler.down.clear()
        await handler.until("1", "2", "3")

    assert [(line["event"], line["queue"], line["reason"]) for line in lines] == [
        ("consumer.paused", queue, "DATABASE_UNAVAILABLE"),
        ("consumer.resumed", queue, "DATABASE_UNAVAILABLE"),
    ]
    assert bus.incidents == {"consumer.paused": 1, "consumer.resumed": 1}
    await subscription.cancel()


async def test_paused_queue_counts_as_one_with_a_backlog(bus: AmqpBus, unique: Unique) -> None:
    """Otherwise a replay after the loss of the queue would not reach back to its events."""
    event, handler = unique("postbus.test.v1.Event"), Handler()
    subscription = await bus.subscribe([event], handler, queue=unique("test.queue."))
    consumer = bus._consumers[-1]
    assert isinstance(consumer, EventConsumer)
    handler.down.set()
    await publish(bus, event, "1")
    await handler.until_taken(2)

    good_at = consumer._replay.good_at
    consumer.checked(missing=False)
    assert consumer._replay.good_at == good_at

    handler.down.clear()
    await handler.until("1")
    async with asyncio.timeout(5):
        while consumer._replay.good_at == good_at:
            consumer.checked(missing=False)
            await asyncio.sleep(0.01)
    await subscription.cancel()
