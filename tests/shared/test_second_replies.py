"""A method that two queues serve: each call is executed twice, and its caller reports it."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from structlog.testing import capture_logs

from postbus.bus.v1 import Batch, Completed, Reply
from shared.bus.amqp.amqp_bus import AmqpBus
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.second_replies import SecondReplies
from shared.errors import ServiceError
from shared.wire import encode
from tests.buses import a_call, echo, opened_bus
from tests.messages import CALLS, REPLIES, message
from tests.people import eventually

Unique = Callable[[str], str]
INCIDENT = "call.second_reply"


@pytest.fixture
async def bus(vhost: str) -> AsyncIterator[AmqpBus]:
    async with opened_bus(vhost) as connected:
        yield connected


@pytest.fixture
async def other(vhost: str) -> AsyncIterator[AmqpBus]:
    async with opened_bus(vhost) as connected:
        yield connected


def counted(bus: AmqpBus, number: int) -> Callable[[], Awaitable[bool]]:
    async def reached() -> bool:
        return bus.incidents[INCIDENT] >= number

    return reached


async def test_second_reply_is_counted_logged_with_both_workers_and_shown(
    bus: AmqpBus, other: AmqpBus, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    servers = [await each.serve(unique("test.own"), [route], echo) for each in (bus, other)]
    assert bus.warning == ""

    with capture_logs() as lines:
        for _ in range(3):
            assert (await bus.call(route, a_call(b"hello"))).payload == b"hello"
        await eventually(counted(bus, 3))

    [line] = [each for each in lines if each["event"] == INCIDENT]  # one in ten seconds
    assert line["method"] == route
    assert len(set(line["workers"])) == 2
    assert all(name.startswith("test.control.") for name in line["workers"])
    assert route in bus.warning
    assert bus.incidents == {INCIDENT: 3}
    for server in servers:
        await server.cancel()


async def test_every_second_reply_to_calls_in_batches_is_counted(
    bus: AmqpBus, other: AmqpBus, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    servers = [await each.serve(unique("test.own"), [route], echo) for each in (bus, other)]

    await asyncio.gather(*(bus.call(route, a_call()) for _ in range(100)))
    await eventually(counted(bus, 100))

    assert bus.incidents == {INCIDENT: 100}
    for server in servers:
        await server.cancel()


async def test_worker_in_another_language_beside_ours_is_noticed(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    server = await bus.serve(unique("test.own"), [route], echo)
    async with await aio_pika.connect(vhost) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(unique("test.foreign"), auto_delete=True)
        await queue.bind(CALLS, route)
        replies = await channel.get_exchange(REPLIES)

        async def reply(request: AbstractIncomingMessage) -> None:
            found = message(encode(Reply()), correlation_id=request.correlation_id)
            await replies.publish(found, str(request.reply_to))

        await queue.consume(reply, no_ack=True)
        with capture_logs() as lines:
            await bus.call(route, a_call())
            await eventually(counted(bus, 1))

    [line] = [each for each in lines if each["event"] == INCIDENT]
    assert "" in line["workers"]
    await server.cancel()


async def test_second_reply_in_a_batch_after_the_call_is_noticed(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    async with await aio_pika.connect(vhost) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(unique("test.foreign"), auto_delete=True)
        await queue.bind(CALLS, route)
        replies = await channel.get_exchange(REPLIES)
        async with asyncio.timeout(5), queue.iterator() as requests:
            call = asyncio.create_task(bus.call(route, a_call()))
            request = await anext(requests)
            id_, reply_to, reply = request.correlation_id, request.reply_to, encode(Reply())
            await replies.publish(message(reply, correlation_id=id_), str(reply_to))
            await call
            batch = Batch(correlation_ids=[str(id_)], messages=[reply])
            await replies.publish(message(encode(batch)), str(reply_to))
            await eventually(counted(bus, 1))

    assert bus.incidents == {INCIDENT: 1}


async def test_two_workers_that_share_the_queue_of_a_method_are_no_incident(
    bus: AmqpBus, other: AmqpBus, unique: Unique
) -> None:
    route, queue = unique("postbus.test.v1.Route"), unique("test.shared")
    servers = [await each.serve(queue, [route], echo) for each in (bus, other)]

    await asyncio.gather(*(bus.call(route, a_call()) for _ in range(100)))
    await bus.call(route, a_call())

    assert (bus.incidents, bus.warning) == ({}, "")
    for server in servers:
        await server.cancel()


async def test_stream_of_two_workers_is_broken_and_counted(
    bus: AmqpBus, other: AmqpBus, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")

    async def handler(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        for number in (1, 2, 3):
            yield encode(Reply(payload=b"part", sequence=number))
            await asyncio.sleep(0.05)
        yield encode(Reply(completed=Completed(), sequence=4))

    servers = [await each.serve(unique("test.own"), [route], handler) for each in (bus, other)]

    with pytest.raises(ServiceError) as raised:
        async for _ in bus.stream(route, a_call()):
            pass

    assert raised.value.reason == "STREAM_BROKEN"
    assert bus.incidents[INCIDENT] >= 1
    for server in servers:
        await server.cancel()


async def test_answered_calls_are_remembered_in_a_bounded_number(
    bus: AmqpBus, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    server = await bus.serve(unique("test.own"), [route], echo)

    for _ in range(4):
        await asyncio.gather(*(bus.call(route, a_call()) for _ in range(600)))
        await bus.call(route, a_call())

    kept = bus._second_replies
    assert 0 < len(kept._earlier) <= 1025
    assert len(kept.answered) <= 1025
    await server.cancel()


def a_reply(sender: str = "test") -> Delivered:
    return Delivered(1, "", "1", "test.control.2", b"", b"", sender)


def test_call_is_remembered_until_the_second_renewal() -> None:
    incidents = Counter[str]()
    second = SecondReplies(incidents)
    second.answered["1"] = "postbus.test.v1.Route", "test.control.1"

    second.renew()
    second.check("1", a_reply())
    second.renew()
    second.check("1", a_reply())

    assert incidents == {INCIDENT: 1}


def test_late_reply_and_reply_of_another_service_are_no_second_replies() -> None:
    incidents = Counter[str]()
    second = SecondReplies(incidents)
    second.answered["1"] = "postbus.test.v1.Route", "test.control.1"

    second.check("2", a_reply())
    second.check("1", a_reply("neighbour"))

    assert (incidents, second.warning) == ({}, "")


def test_warning_is_shown_for_a_minute() -> None:
    now = 100.0
    second = SecondReplies(Counter(), clock=lambda: now)
    second.write("postbus.test.v1.Route", "one", "two")

    now = 159.9
    assert "postbus.test.v1.Route" in second.warning
    now = 160.1
    assert second.warning == ""
