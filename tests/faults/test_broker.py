"""Faults of the broker and the network, and the recovery of the bus.

Known faults of aio-pika and aiormq: consumers that the broker cancels are dropped silently,
exclusive queues and consumers are not always restored, a blocked connection is not reported, and a
cancelled publish can hold the lock of its channel.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import aio_pika
import httpx
import pytest
import structlog.testing
from pydantic import SecretStr

from postbus.bus.v1 import Event, Outcome, Reply
from shared.bus import Call
from shared.bus.amqp import connect, reconnection
from shared.bus.amqp.amqp_bus import AmqpBus
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_errors import BROKER_ERRORS, broker_errors
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.rpc_server import RpcServer
from shared.bus.message_bus import Failure
from shared.errors import Code, ServiceError
from shared.wire import decode, encode
from tests.buses import a_call, ignore, opened_bus, until_reconnected
from tests.messages import EVENTS, message, publish_until_routed
from tests.proxy import Proxy

Unique = Callable[[str], str]
BLOCKED = b"\1\0\0\0\0\0\x08\0\x0a\0\x3c\x03low\xce"  # connection.blocked
EXCHANGE_DECLARE = b"\0\x28\0\x0a"
CLOSE = (  # connection.close: 320, CONNECTION_FORCED
    b"\1\0\0\0\0\0\x1c\0\x0a\0\x32\x01\x40\x11CONNECTION_FORCED\0\0\0\0\xce"
)
UNBLOCKED = b"\1\0\0\0\0\0\x04\0\x0a\0\x3d\xce"


@pytest.fixture
async def proxy(vhost: str) -> AsyncIterator[Proxy]:
    async with Proxy.open(vhost) as proxy:
        yield proxy


@pytest.fixture
async def bus(vhost: str, proxy: Proxy) -> AsyncIterator[AmqpBus]:
    """Yield a bus behind the proxy."""
    async with opened_bus(proxy.url, delays=(0.05,), keep_events=True) as connected:
        yield connected


async def echo(_route: str, _body: bytes, _service: str) -> bytes:
    return encode(Reply(payload=b"here"))


async def until_answered(bus: AmqpBus, route: str) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                assert (await bus.call(route, a_call(seconds=0.5))).payload == b"here"
            except ServiceError as error:
                assert error.code in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}  # noqa: PT017
                await asyncio.sleep(0.05)
            else:
                return


async def test_server_whose_queue_is_deleted_serves_again(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    queue, route = unique("queue."), unique("postbus.test.v1.Route")
    server = await bus.serve(queue, [route], echo)

    async with await aio_pika.connect(vhost) as connection:
        await (await connection.channel()).queue_delete(f"{queue}.{route}")

    await until_answered(bus, route)
    await server.cancel()


async def test_consumer_whose_queue_is_deleted_consumes_again(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    queue, event = unique("queue."), unique("postbus.test.v1.Event")
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def keep(body: bytes) -> Failure | None:
        received.put_nowait(body)
        return None

    subscription = await bus.subscribe([event], keep, queue=queue)
    async with await aio_pika.connect(vhost) as connection:
        await (await connection.channel()).queue_delete(queue)

    async with asyncio.timeout(10):
        while received.empty():
            try:
                await bus.publish(Event(id="1", type=event))
            except ServiceError:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.05)
    await subscription.cancel()


async def test_calls_in_flight_fail_at_once_when_the_connection_breaks(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    begun = asyncio.Event()

    async def never(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        await asyncio.Event().wait()
        return b""

    await bus.serve(unique("queue."), [route], never)
    calls = [asyncio.create_task(bus.call(route, a_call())) for _ in range(10)]
    await begun.wait()
    broken = time.monotonic()
    proxy.break_()
    failures = await asyncio.gather(*calls, return_exceptions=True)

    assert time.monotonic() - broken < 1
    assert {(f.reason, f.outcome) for f in failures if isinstance(f, ServiceError)} == {
        ("CONNECTION_LOST", Outcome.UNKNOWN)
    }


async def test_server_recovers_after_each_broken_connection(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    server = await bus.serve(unique("queue."), [route], echo)
    for _ in range(5):
        await until_answered(bus, route)
        proxy.break_()
    await until_answered(bus, route)
    await server.cancel()


async def test_stalled_connection_is_detected_as_lost(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    event = unique("postbus.test.v1.Event")
    proxy.stall()
    began = time.monotonic()

    with pytest.raises(ServiceError) as raised:
        await bus.publish(Event(id="1", type=event))

    assert (raised.value.reason, raised.value.outcome) == ("CONNECTION_LOST", Outcome.UNKNOWN)
    assert time.monotonic() - began < 6
    proxy.break_()
    proxy.flow()
    async with asyncio.timeout(10):
        while not bus.ready:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)
    await publish_until_routed(bus, Event(id="2", type=event))


async def test_blocked_broker_is_not_ready_and_calls_fail(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    server = await bus.serve(unique("queue."), [route], echo)
    await until_answered(bus, route)

    proxy.tell_clients(BLOCKED)
    async with asyncio.timeout(5):
        while bus.ready:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)
    with pytest.raises(ServiceError) as raised:
        await bus.call(route, a_call())
    assert (raised.value.reason, raised.value.outcome) == ("BROKER_BLOCKED", Outcome.NO_EFFECT)

    proxy.tell_clients(UNBLOCKED)
    await until_answered(bus, route)
    assert bus.ready
    await server.cancel()


async def test_publish_to_a_blocked_broker_keeps_the_connection(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    session = bus._session
    proxy.stall()
    before = proxy.received
    publishing = asyncio.create_task(
        bus.publish(Event(id="1", type=unique("postbus.test.v1.Event")))
    )
    async with asyncio.timeout(5):
        while proxy.received == before:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)
    proxy.tell_clients(BLOCKED)

    with pytest.raises(ServiceError) as raised:
        await publishing
    assert (raised.value.reason, raised.value.outcome) == ("BROKER_BLOCKED", Outcome.UNKNOWN)

    proxy.flow()
    proxy.tell_clients(UNBLOCKED)
    async with asyncio.timeout(5):
        while not bus.ready:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)
    await publish_until_routed(bus, Event(id="2", type=unique("postbus.test.v1.Event")))
    assert bus._session is session


async def test_server_stops_without_an_answer_of_the_broker(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    server = await bus.serve(unique("queue."), [unique("postbus.test.v1.Route")], echo)
    proxy.stall()

    async with asyncio.timeout(8):
        await server.cancel()


async def test_events_with_names_beyond_255_bytes_become_dead_letters(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    queue, event = unique("queue."), unique("postbus.test.v1.Event")
    received = asyncio.Event()

    async def refuse(body: bytes) -> Failure | None:
        if decode(Event, body).id == "good":
            received.set()
            return None
        return Failure(reason="BAD", message="Bad.", retry=False)

    subscription = await bus.subscribe([event], refuse, queue=queue)
    async with await aio_pika.connect(vhost) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(EVENTS)
        nested: dict[str, Any] = {}
        for _ in range(300):
            nested = {"x": nested}
        for number in range(40):  # more than the prefetch
            body = encode(Event(id="é" * 200, type="é" * 200))
            headers = nested if number % 2 else {}
            await exchange.publish(message(body, headers=headers), event)
        await bus.publish(Event(id="good", type=event))
        async with asyncio.timeout(10):
            await received.wait()
            dead = await channel.get_queue(f"{queue}.dead", ensure=False)
            for _ in range(40):
                while (letter := await dead.get(fail=False)) is None:  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.02)
                assert letter.headers["x-postbus-reason"] == "BAD"
                assert letter.message_id == letter.type == "é" * 127
                await letter.ack()
    await subscription.cancel()


async def test_cancellation_by_aiormq_becomes_a_connection_error() -> None:
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(answer.cancel)
    with pytest.raises(ConnectionError), broker_errors():
        await answer

    async def wait() -> None:
        with broker_errors():
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def stall_at(proxy: Proxy, marker: bytes) -> None:
    """Stall once a client sends `marker`."""
    while marker not in proxy.sent:  # noqa: ASYNC110  # polls
        await asyncio.sleep(0)
    proxy.stall()


async def test_delays_start_again_after_a_stable_connection_only(
    bus: AmqpBus, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead)
    monkeypatch.setattr(reconnection, "time", clock)

    async def next_delays(count: int) -> list[float]:
        """Break the connection; return the delays after the failed attempts to connect."""
        with structlog.testing.capture_logs() as lines:
            await proxy.stop()
            delays = list[float]()
            while len(delays) < count:
                await asyncio.sleep(0.01)
                delays = [each["retry_in"] for each in lines if "retry_in" in each]
        await proxy.start()
        await bus.wait_ready()
        return delays

    async with asyncio.timeout(20):
        first = await next_delays(2)
        unstable = await next_delays(1)
        ahead = 6.0
        stable = await next_delays(1)

    assert first == [0.2, 0.4]
    assert unstable[0] >= 0.8
    assert stable == [0.2]


async def test_connecting_ends_after_5_seconds_without_an_answer(vhost: str) -> None:
    """A broker that does not answer at all, and one that does not answer the declarations."""

    async def connecting(marker: bytes) -> float:
        async with Proxy.open(vhost) as proxy:
            began = time.monotonic()
            stalling = asyncio.create_task(stall_at(proxy, marker))
            with pytest.raises(BROKER_ERRORS):
                async with BrokerSession.open(proxy.url, "test"):
                    pass
            stalling.cancel()
            return time.monotonic() - began

    async with asyncio.timeout(15):
        seconds = await asyncio.gather(connecting(b"AMQP"), connecting(EXCHANGE_DECLARE))

    assert all(4.5 < each < 10 for each in seconds)


async def test_bus_connects_again_after_the_loss_of_a_channel(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    server = await bus.serve(unique("queue."), [route], echo)
    session = bus._session
    consumer = bus._consumers[0]
    assert session is not None
    assert isinstance(consumer, RpcServer)

    with suppress(Exception):  # the broker closes the channel
        await consumer._channel.channel.declare_queue(unique("no."), passive=True)

    await until_reconnected(bus, session)
    await until_answered(bus, route)
    await server.cancel()


async def test_consumer_that_the_broker_refuses_is_started_again(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    event, name = unique("postbus.test.v1.Event"), unique("queue.")
    async with await aio_pika.connect(vhost) as connection:
        other = await (await connection.channel()).declare_queue(name, exclusive=True)
        session = bus._session
        with structlog.testing.capture_logs() as lines:
            subscribing = asyncio.create_task(bus.subscribe([event], ignore, queue=name))
            async with asyncio.timeout(10):
                while "consumer.not_started" not in {x["event"] for x in lines}:  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.01)
        assert bus._session is session  # the calls of the process go on
        await other.delete()
        async with asyncio.timeout(10):
            await (await subscribing).cancel()


async def test_bus_survives_a_cancellation_by_aiormq(bus: AmqpBus, unique: Unique) -> None:
    """After missed heartbeats aiormq cancels the futures that it awaits."""
    session = bus._session
    assert session is not None
    waiting = list(session.lost._waiters)

    for future in waiting:
        future.cancel()

    await until_reconnected(bus, session)
    route = unique("postbus.test.v1.Route")
    server = await bus.serve(unique("queue."), [route], echo)
    await until_answered(bus, route)
    await server.cancel()


async def test_publication_fails_at_once_when_the_connection_breaks(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    proxy.stall()
    publishing = asyncio.create_task(
        bus.publish(Event(id="1", type=unique("postbus.test.v1.Event")))
    )
    await asyncio.sleep(0)
    broken = time.monotonic()
    proxy.break_()

    with pytest.raises(ServiceError) as raised:
        await publishing

    assert (raised.value.reason, raised.value.outcome) == ("CONNECTION_LOST", Outcome.UNKNOWN)
    assert time.monotonic() - broken < 1
    proxy.flow()


async def test_stream_fails_at_once_when_the_connection_breaks(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")

    async def one(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        yield encode(Reply(payload=b"1", sequence=1))
        await asyncio.Event().wait()

    server = await bus.serve(unique("queue."), [route], one)
    replies = bus.stream(route, a_call())
    assert await anext(replies) == b"1"
    broken = time.monotonic()
    proxy.break_()

    with pytest.raises(ServiceError, match="CONNECTION_LOST"):
        await anext(replies)

    assert time.monotonic() - broken < 1
    await server.cancel()


async def test_bytes_that_are_not_amqp_end_the_connection(bus: AmqpBus, proxy: Proxy) -> None:
    session = bus._session

    proxy.tell_clients(b"\1\0\1\xff\xff\xff\xff\0")  # a frame of 4 GiB

    await until_reconnected(bus, session)
    assert bus.ready


async def test_calls_wait_while_the_broker_does_not_read(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    server = await bus.serve(unique("queue."), [route], echo)
    await until_answered(bus, route)
    session = bus._session
    assert session is not None
    proxy.stall()
    payload = bytes(2**20)
    calls = [asyncio.create_task(bus.call(route, Call.new(payload, budget=10))) for _ in range(60)]
    async with asyncio.timeout(5):
        while session.publishing.transport.writable:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0)
    late = asyncio.create_task(bus.call(route, Call.new(b"late", budget=10)))
    await asyncio.sleep(0)
    held = session.publishing.transport._socket.get_write_buffer_size()
    await asyncio.sleep(0)
    assert session.publishing.transport._socket.get_write_buffer_size() == held
    proxy.flow()

    assert (await late).payload == b"here"
    assert {(await each).payload for each in calls} == {b"here"}
    await server.cancel()


async def test_call_keeps_its_slot_while_the_broker_does_not_read_its_reply(
    vhost: str, bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")

    async def large(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=bytes(2**20)))

    server = await bus.serve(unique("queue."), [route], large, concurrency=4)
    session, consumer = bus._session, bus._consumers[-1]
    assert session is not None
    assert isinstance(consumer, RpcServer)
    async with opened_bus(vhost) as caller:
        await caller.call(route, a_call())  # opens the channel for the replies
        proxy.hold_client_bytes()
        calls = [asyncio.create_task(caller.call(route, a_call(seconds=15))) for _ in range(60)]
        async with asyncio.timeout(5):
            while session.publishing.transport.writable or not consumer._running:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert not session.publishing.transport.writable
        assert consumer._limit._free < 4
        proxy.flow()

        for call in calls:
            assert len((await call).payload) == 2**20
    await server.cancel()


async def test_event_that_cannot_be_retried_now_is_retried_once_a_second(
    bus: AmqpBus, vhost: str, proxy: Proxy, unique: Unique
) -> None:
    event, attempts = unique("postbus.test.v1.Event"), asyncio.Queue[bytes]()

    async def fail(body: bytes) -> Failure | None:
        attempts.put_nowait(body)
        if attempts.qsize() > 1:
            return None
        proxy.tell_clients(BLOCKED)
        while bus.ready:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0)
        return Failure(reason="LATER", message="Later.", retry=True)

    subscription = await bus.subscribe([event], fail, queue=unique("queue."))
    async with opened_bus(vhost) as publisher:
        with structlog.testing.capture_logs() as lines:
            await publisher.publish(Event(id="1", type=event))
            async with asyncio.timeout(10):
                while "event.publish_delayed" not in [x["event"] for x in lines]:  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
        waits = [line["reason"] for line in lines if line["event"] == "event.publish_delayed"]
        assert waits == ["BROKER_BLOCKED"]
        proxy.tell_clients(UNBLOCKED)
        async with asyncio.timeout(10):
            while attempts.qsize() < 2:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)
    await subscription.cancel()


async def test_subscriber_without_a_named_queue_is_notified_of_a_gap(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    gaps, again = 0, asyncio.Event()

    def on_gap() -> None:
        nonlocal gaps
        gaps += 1
        again.set()

    subscription = await bus.subscribe([unique("postbus.test.v1.Event")], ignore, on_gap=on_gap)
    assert gaps == 0
    proxy.break_()

    async with asyncio.timeout(10):
        await again.wait()
    assert gaps == 1
    await subscription.cancel()


async def test_follower_stops_without_an_answer_of_the_broker(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    following = await bus.read_stream(
        unique("stream."), [unique("postbus.test.v1.Event")], ignore, seconds=60
    )
    proxy.stall()

    async with asyncio.timeout(4):
        await following.cancel()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"path": "/no_such_vhost"}, "530 NOT_ALLOWED - "),
        ({"username": "test", "password": "wrong"}, "403 ACCESS_REFUSED - "),
    ],
)
async def test_reason_of_the_broker_not_to_connect_is_logged(
    vhost: str, wrong: dict[str, str], reason: str
) -> None:
    url = str(httpx.URL(vhost).copy_with(**wrong))
    with structlog.testing.capture_logs() as lines:
        async with connect(SecretStr(url), "test"), asyncio.timeout(5):
            while not lines:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)

    assert (lines[0]["event"], reason in lines[0]["error"]) == ("bus.not_connected", True)


async def test_reason_of_the_broker_to_close_the_connection_is_logged(
    bus: AmqpBus, proxy: Proxy
) -> None:
    session = bus._session
    with structlog.testing.capture_logs() as lines:
        proxy.tell_clients(CLOSE)
        await until_reconnected(bus, session)

    reasons = [line["reason"] for line in lines if line["event"] == "bus.connection_lost"]
    assert reasons == ["320 CONNECTION_FORCED"]


async def test_number_of_a_channel_is_used_again_only_after_all_others(vhost: str) -> None:
    """The broker may still close the channel that had it, and would then close the connection."""
    async with BrokerConnection.open(vhost, "test") as connection:
        first = await connection.channel()
        await connection.close_channel(await connection.channel())
        third = await connection.channel()
        used = [first.channel.number, third.channel.number]

        assert used == [1, 3]
        numbers = {next(connection._numbers) for _ in range(2 * 2047)}
        assert (min(numbers), max(numbers)) == (2, 2047)
        assert not numbers.intersection(used)
