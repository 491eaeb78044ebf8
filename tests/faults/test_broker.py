"""Faults of the broker and the network, and the recovery of the bus.

Known faults of aio-pika and aiormq: consumers that the broker cancels are dropped silently,
exclusive queues and consumers are not always restored, a blocked connection is not reported, and a
cancelled publish can hold the lock of its channel.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aio_pika
import httpx
import pytest
from pydantic import SecretStr

from postbus.bus.v1 import Event, Outcome, Reply
from shared.bus import Call
from shared.bus.amqp import connect
from shared.bus.amqp.amqp_bus import AmqpBus
from shared.bus.amqp.broker_connection import broker_errors
from shared.bus.amqp.topology import EVENT_EXCHANGE
from shared.bus.message_bus import Failure
from shared.errors import Code, ServiceError
from shared.wire import decode, encode
from tests.proxy import Proxy

Unique = Callable[[str], str]
BLOCKED = b"\1\0\0\0\0\0\x08\0\x0a\0\x3c\x03low\xce"  # connection.blocked
UNBLOCKED = b"\1\0\0\0\0\0\x04\0\x0a\0\x3d\xce"


@pytest.fixture
async def proxy(vhost: str) -> AsyncIterator[Proxy]:
    broker = httpx.URL(vhost)
    proxy = Proxy(broker.host, broker.port or 5672)
    await proxy.start()
    yield proxy
    proxy.flow()
    await proxy.stop()


@pytest.fixture
async def bus(vhost: str, proxy: Proxy) -> AsyncIterator[AmqpBus]:
    """Yield a bus behind the proxy."""
    url = str(httpx.URL(vhost).copy_with(port=proxy.port))
    async with connect(SecretStr(url), "faults", delays=(0.05,)) as connected:
        await connected.wait_ready()
        yield connected


def a_call(seconds: float = 5) -> Call:
    return Call.new(b"", deadline=time.time() + seconds)


async def echo(_route: str, _body: bytes) -> bytes:
    return encode(Reply(payload=b"here"))


async def until_answered(bus: AmqpBus, route: str) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                assert (await bus.call(route, a_call(0.5))).payload == b"here"
            except ServiceError as error:
                assert error.code in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}  # noqa: PT017
                await asyncio.sleep(0.05)
            else:
                return


async def test_server_whose_queue_is_deleted_serves_again(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    queue, route = unique("queue."), unique("route.")
    server = await bus.serve(queue, [route], echo)

    async with await aio_pika.connect(vhost) as connection:
        await (await connection.channel()).queue_delete(queue)

    await until_answered(bus, route)
    await server.cancel()


async def test_consumer_whose_queue_is_deleted_consumes_again(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    queue, event = unique("queue."), unique("event.")
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
    route = unique("route.")
    begun = asyncio.Event()

    async def never(_route: str, _body: bytes) -> bytes:
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
    route = unique("route.")
    server = await bus.serve(unique("queue."), [route], echo)
    for _ in range(5):
        await until_answered(bus, route)
        proxy.break_()
    await until_answered(bus, route)
    await server.cancel()


async def test_stalled_connection_is_detected_as_lost(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    event = unique("event.")
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
    await bus.publish(Event(id="2", type=event))


async def test_blocked_broker_is_not_ready_and_calls_fail(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    route = unique("route.")
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
    publishing = asyncio.create_task(bus.publish(Event(id="1", type=unique("event."))))
    await asyncio.sleep(0.1)
    proxy.tell_clients(BLOCKED)

    with pytest.raises(ServiceError) as raised:
        await publishing
    assert (raised.value.reason, raised.value.outcome) == ("BROKER_BLOCKED", Outcome.UNKNOWN)

    proxy.flow()
    proxy.tell_clients(UNBLOCKED)
    async with asyncio.timeout(5):
        while not bus.ready:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)
    await bus.publish(Event(id="2", type=unique("event.")))
    assert bus._session is session


async def test_server_stops_without_an_answer_of_the_broker(
    bus: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    server = await bus.serve(unique("queue."), [unique("route.")], echo)
    proxy.stall()

    async with asyncio.timeout(8):
        await server.cancel()


async def test_events_with_names_beyond_255_bytes_become_dead_letters(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    queue, event = unique("queue."), unique("event.")
    received = asyncio.Event()

    async def refuse(body: bytes) -> Failure | None:
        if decode(Event, body).id == "good":
            received.set()
            return None
        return Failure(reason="BAD", message="Bad.", retry=False)

    subscription = await bus.subscribe([event], refuse, queue=queue)
    async with await aio_pika.connect(vhost) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(EVENT_EXCHANGE)
        nested: dict[str, Any] = {}
        for _ in range(300):
            nested = {"x": nested}
        for number in range(40):  # more than the prefetch
            body = encode(Event(id="é" * 200, type="é" * 200))
            headers = nested if number % 2 else {}
            await exchange.publish(aio_pika.Message(body, headers=headers), event)
        await bus.publish(Event(id="good", type=event))
        async with asyncio.timeout(10):
            await received.wait()
            dead = await channel.get_queue(f"{queue}.dead", ensure=False)
            for _ in range(40):
                while (letter := await dead.get(fail=False)) is None:  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.02)
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
