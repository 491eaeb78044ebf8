"""Calls of one moment travel together, and are calls of their own all the same."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from pydantic import SecretStr

from postbus.bus.v1 import Batch, Control, Outcome, Reply, Request
from shared.bus import Call, CallResult
from shared.bus.amqp import connect
from shared.bus.amqp.amqp_bus import AmqpBus
from shared.bus.amqp.topology import CONTROL_EXCHANGE, RPC_EXCHANGE
from shared.errors import ServiceError
from shared.wire import decode, encode

Unique = Callable[[str], str]


@pytest.fixture(params=["frames", "aio-pika"])
async def bus(request: pytest.FixtureRequest, vhost: str) -> AsyncIterator[AmqpBus]:
    async with connect(SecretStr(vhost), "test", request.param) as connected:
        await connected.wait_ready()
        yield connected


@pytest.fixture
async def channel(vhost: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    async with await aio_pika.connect(vhost) as connection:
        yield await connection.channel()


def a_call(payload: bytes, seconds: float = 5) -> Call:
    return Call.new(payload, deadline=time.time() + seconds)


async def echo(_route: str, body: bytes) -> bytes:
    return encode(Reply(payload=decode(Request, body).payload))


async def call_all(bus: AmqpBus, route: str, payloads: list[bytes]) -> list[bytes]:
    results = await asyncio.gather(*(bus.call(route, a_call(each)) for each in payloads))
    return [result.payload for result in results]


def numbered(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


async def test_calls_of_one_moment_share_messages(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = unique("route.")
    queue = await channel.declare_queue(exclusive=True)
    for key in (route, f"{route}/batch"):
        await queue.bind(RPC_EXCHANGE, key)
    calls = [asyncio.create_task(bus.call(route, a_call(each))) for each in numbered(20)]

    found: list[bytes] = []
    async with queue.iterator() as messages:
        while len(found) < len(calls):
            message = await anext(messages)
            if message.correlation_id:  # the first has nothing to wait for
                found.append(decode(Request, message.body).payload)
                continue
            batch = decode(Batch, message.body)
            found += [decode(Request, each).payload for each in batch.messages]
            assert len(batch.messages) == len(set(batch.correlation_ids)) > 1
            assert isinstance(message.expiration, float)
            assert 4 < message.expiration <= 5

    assert found == numbered(20)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_server_that_takes_no_batches_gets_the_calls_one_by_one(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = unique("route.")
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(RPC_EXCHANGE, route)

    async def answer(message: AbstractIncomingMessage) -> None:
        reply = aio_pika.Message(
            await echo("", message.body), correlation_id=message.correlation_id
        )
        assert message.reply_to
        await channel.default_exchange.publish(reply, message.reply_to)
        await message.ack()

    await queue.consume(answer)

    for _ in range(2):
        assert await call_all(bus, route, numbered(20)) == numbered(20)


async def test_batch_that_nobody_takes_is_unavailable_at_once(bus: AmqpBus, unique: Unique) -> None:
    began = time.monotonic()
    calls = [bus.call(unique("nobody."), a_call(b"x")) for _ in range(5)]

    failures = await asyncio.gather(*calls, return_exceptions=True)

    reasons = [failure.reason for failure in failures if isinstance(failure, ServiceError)]
    assert reasons == ["NO_ROUTE"] * 5
    assert time.monotonic() - began < 1


async def test_large_requests_and_replies_travel_with_small_ones(
    bus: AmqpBus, unique: Unique
) -> None:
    route = unique("route.")
    server = await bus.serve(unique("queue."), [route], echo)
    payloads = [bytes([number]) * size for number in range(5) for size in (1, 16_000, 500_000)]

    assert await call_all(bus, route, payloads) == payloads

    await server.cancel()


async def test_cancelled_call_leaves_the_rest_of_its_batch_alone(
    bus: AmqpBus, unique: Unique
) -> None:
    route, begun, cancelled = unique("route."), asyncio.Event(), asyncio.Event()

    async def handler(route: str, body: bytes) -> bytes:
        if decode(Request, body).payload == b"slow":
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        return await echo(route, body)

    server = await bus.serve(unique("queue."), [route], handler)
    calls = [
        asyncio.create_task(bus.call(route, a_call(each))) for each in (b"one", b"slow", b"two")
    ]
    await begun.wait()
    calls[1].cancel()

    assert [(await calls[each]).payload for each in (0, 2)] == [b"one", b"two"]
    await asyncio.wait_for(cancelled.wait(), 5)
    await server.cancel()


async def test_last_server_tells_the_callers_of_what_it_has_not_begun(
    bus: AmqpBus, unique: Unique
) -> None:
    route, begun = unique("route."), asyncio.Event()

    async def never(_route: str, _body: bytes) -> bytes:
        begun.set()
        await asyncio.Event().wait()
        return b""

    server = await bus.serve(unique("queue."), [route], never, concurrency=1)
    calls = [asyncio.create_task(bus.call(route, a_call(each, 20))) for each in numbered(6)]
    await begun.wait()
    await server.cancel()

    failures = await asyncio.gather(*calls, return_exceptions=True)
    told = [(f.reason, f.outcome) for f in failures if isinstance(f, ServiceError)]
    assert sorted(told) == sorted(
        [("SERVER_STOPPED", Outcome.UNKNOWN)] + 5 * [("SERVER_STOPPED", Outcome.NO_EFFECT)]
    )


async def test_stopping_server_hands_on_what_it_has_not_begun(bus: AmqpBus, unique: Unique) -> None:
    route, queue = unique("route."), unique("queue.")
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(route: str, body: bytes) -> bytes:
        begun.set()
        await go_on.wait()
        return b"" if body == b"" else await echo(route, body)

    first = await bus.serve(queue, [route], slow, concurrency=1)
    calls = asyncio.create_task(call_all(bus, route, numbered(6)))
    await begun.wait()
    second = await bus.serve(queue, [route], echo)
    stopping = asyncio.create_task(first.cancel())
    await asyncio.sleep(0.2)
    go_on.set()

    assert await calls == numbered(6)
    await asyncio.gather(stopping, second.cancel())


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xff",
        bytes(Batch(correlation_ids=["1"], messages=[])),
        bytes(Batch(correlation_ids=["1"] * 100, messages=[b""] * 100)),
        b"\x0a\x00" * 1_500_000,
        bytes(Batch(correlation_ids=["é" * 200], messages=[b""])),
        b"",
    ],
    ids=["malformed", "uneven", "too many", "too large", "long id", "empty"],
)
async def test_bad_batch_is_dropped(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique, body: bytes
) -> None:
    route, queue = unique("route."), unique("queue.")
    server = await bus.serve(queue, [route], echo)
    exchange = await channel.get_exchange(RPC_EXCHANGE)

    await exchange.publish(aio_pika.Message(body, reply_to="nobody"), f"{route}/batch")

    assert await call_all(bus, route, numbered(3)) == numbered(3)
    await server.cancel()
    assert (await channel.declare_queue(queue)).declaration_result.message_count == 0


async def test_bad_batch_of_replies_is_dropped(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = unique("route.")
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(RPC_EXCHANGE, route)
    call = asyncio.create_task(bus.call(route, a_call(b"x")))
    async with queue.iterator() as messages:
        request = await anext(messages)
    assert request.reply_to
    assert request.correlation_id
    for body in (b"\xff", bytes(Batch(correlation_ids=["1", "2"], messages=[b""]))):
        await channel.default_exchange.publish(aio_pika.Message(body), request.reply_to)

    good = Batch(
        correlation_ids=["unknown", request.correlation_id],
        messages=[b"", encode(Reply(payload=b"here"))],
    )
    await channel.default_exchange.publish(aio_pika.Message(bytes(good)), request.reply_to)

    assert (await call).payload == b"here"


async def test_control_with_a_name_that_amqp_can_not_say_is_ignored(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = f"postbus.bus.v1.{unique('route')}"
    server = await bus.serve(unique("queue."), [route], echo)
    exchange = await channel.get_exchange(CONTROL_EXCHANGE)
    control = Control(reply_to="é" * 200, correlation_id="1", request=a_call(b"").request)

    await exchange.publish(aio_pika.Message(bytes(control)), route)

    assert await bus.broadcast(route, a_call(b"here", 0.5)) == [b"here"]
    await server.cancel()


async def test_server_takes_no_more_bytes_in_hand_than_it_has_room_for(
    bus: AmqpBus, unique: Unique
) -> None:
    route, go_on = unique("route."), asyncio.Event()

    async def hold(_route: str, _body: bytes) -> bytes:
        await go_on.wait()
        return encode(Reply(payload=b"done"))

    server = await bus.serve(unique("queue."), [route], hold)
    calls = [asyncio.create_task(bus.call(route, a_call(bytes(15 * 2**20), 20))) for _ in range(6)]
    refused, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(ServiceError, match="OVERLOADED"):
        await refused.pop()
    go_on.set()

    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [each.payload for each in answers if isinstance(each, CallResult)] == [b"done"] * 5
    await server.cancel()


async def test_cancellations_of_calls_that_have_not_come_are_kept_in_bounded_number(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = f"postbus.bus.v1.{unique('route')}"
    server = await bus.serve(unique("queue."), [route], echo)
    controls = await channel.get_exchange(CONTROL_EXCHANGE)
    calls = await channel.get_exchange(RPC_EXCHANGE)
    replies = await channel.declare_queue(exclusive=True)

    cancels = [
        bytes(Control(reply_to=replies.name, correlation_id=str(number), cancel=True))
        for number in range(1025)
    ]
    await controls.publish(aio_pika.Message(cancels[0]), route)
    await asyncio.gather(*(controls.publish(aio_pika.Message(each), route) for each in cancels[1:]))
    assert await bus.broadcast(route, a_call(b"all came", 1)) == [b"all came"]
    for name in ("1024", "0"):
        call = aio_pika.Message(
            a_call(b"x").request, reply_to=replies.name, correlation_id=name, expiration=5
        )
        await calls.publish(call, route)

    async with asyncio.timeout(5), replies.iterator() as answers:
        assert (await anext(answers)).correlation_id == "0"
    await server.cancel()
