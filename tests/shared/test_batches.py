"""Batches: concurrent calls share messages and remain independent calls."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest
import structlog.testing
from aio_pika.abc import AbstractIncomingMessage
from pamqp.commands import Queue
from structlog.testing import capture_logs

from postbus.bus.v1 import Batch, Control, Outcome, Reply, Request
from shared.bus import CallResult
from shared.bus.amqp import call_receiver, method_queues
from shared.bus.amqp.amqp_bus import AmqpBus
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.message_properties import properties
from shared.errors import Code, ServiceError
from shared.wire import decode, encode
from tests.buses import a_call, echo, opened_bus
from tests.messages import CALLS, CONTROL, REPLIES, reply_queue
from tests.messages import message as new_message

Unique = Callable[[str], str]


@pytest.fixture
async def bus(vhost: str) -> AsyncIterator[AmqpBus]:
    async with opened_bus(vhost) as connected:
        yield connected


@pytest.fixture
async def channel(vhost: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    async with await aio_pika.connect(vhost) as connection:
        yield await connection.channel()


@asynccontextmanager
async def connected_bus(vhost: str) -> AsyncIterator[AmqpBus]:
    """Open a bus with connections of its own."""
    async with opened_bus(vhost) as opened:
        yield opened


async def call_all(bus: AmqpBus, route: str, payloads: list[bytes]) -> list[bytes]:
    results = await asyncio.gather(*(bus.call(route, a_call(each)) for each in payloads))
    return [result.payload for result in results]


def numbered(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


async def test_concurrent_calls_share_messages(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    queue = await channel.declare_queue(exclusive=True)
    for key in (route, f"{route}/batch"):
        await queue.bind(CALLS, key)
    calls = [asyncio.create_task(bus.call(route, a_call(each))) for each in numbered(20)]

    found: list[bytes] = []
    async with queue.iterator() as messages:
        while len(found) < len(calls):
            message = await anext(messages)
            if message.correlation_id:  # the first call is sent immediately
                found.append(decode(Request, message.body).payload)
                continue
            batch = decode(Batch, message.body)
            found += [decode(Request, each).payload for each in batch.messages]
            assert len(batch.messages) == len(set(batch.correlation_ids)) > 1
            assert isinstance(message.expiration, float)
            assert 4 < message.expiration <= 5

    assert sorted(found, key=int) == numbered(20)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_batch_has_8_calls_of_16_kib_at_most(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    queue = await channel.declare_queue(exclusive=True)
    for key in (route, f"{route}/batch"):
        await queue.bind(CALLS, key)
    payloads = [b"first", *numbered(20), bytes(16 * 2**10)]
    calls = [asyncio.create_task(bus.call(route, a_call(each))) for each in payloads]

    singles, batches = list[bytes](), list[int]()
    async with asyncio.timeout(5), queue.iterator() as messages:
        while len(singles) + sum(batches) < len(calls):
            message = await anext(messages)
            if message.correlation_id:
                singles.append(decode(Request, message.body).payload)
            else:
                batches.append(len(decode(Batch, message.body).messages))

    assert sorted(singles, key=len) == [b"first", bytes(16 * 2**10)]
    assert sorted(batches) == [4, 8, 8]
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_calls_expire_in_the_queue_with_their_budget(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(CALLS, route)
    for seconds in (0.05, 5):
        calling = asyncio.create_task(bus.call(route, a_call(b"%d" % seconds, seconds)))
        if seconds < 1:
            with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
                await calling

    async with asyncio.timeout(5), queue.iterator() as messages:
        message = await anext(messages)

    assert decode(Request, message.body).payload == b"5"
    assert isinstance(message.expiration, float)
    assert 4 < message.expiration <= 5
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)


async def test_server_without_batch_support_gets_single_calls(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(CALLS, route)

    async def answer(request: AbstractIncomingMessage) -> None:
        reply = new_message(await echo("", request.body), correlation_id=request.correlation_id)
        assert request.reply_to
        await (await channel.get_exchange(REPLIES)).publish(reply, request.reply_to)
        await request.ack()

    await queue.consume(answer)

    for _ in range(2):
        assert await call_all(bus, route, numbered(20)) == numbered(20)


async def test_unroutable_batch_is_unavailable_at_once(bus: AmqpBus, unique: Unique) -> None:
    began = time.monotonic()
    route = unique("postbus.test.v1.Unserved")
    calls = [bus.call(route, a_call(b"x")) for _ in range(5)]

    failures = await asyncio.gather(*calls, return_exceptions=True)

    reasons = [failure.reason for failure in failures if isinstance(failure, ServiceError)]
    assert reasons == ["NO_ROUTE"] * 5
    assert time.monotonic() - began < 1


async def test_large_and_small_messages_are_answered_together(bus: AmqpBus, unique: Unique) -> None:
    route = unique("postbus.test.v1.Route")
    server = await bus.serve(unique("queue."), [route], echo)
    payloads = [bytes([number]) * size for number in range(5) for size in (1, 16_000, 500_000)]

    assert await call_all(bus, route, payloads) == payloads

    await server.cancel()


async def test_cancelled_call_does_not_affect_the_rest_of_its_batch(
    bus: AmqpBus, unique: Unique
) -> None:
    route, begun, cancelled = unique("postbus.test.v1.Route"), asyncio.Event(), asyncio.Event()

    async def handler(route: str, body: bytes, _service: str) -> bytes:
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
    session = bus._session
    for _ in range(2):  # a second acknowledgement of the batch would end the session
        await bus.call(route, a_call(b"x"))
    assert bus._session is session
    await server.cancel()


async def test_last_server_refuses_unstarted_calls_when_it_stops(
    bus: AmqpBus, unique: Unique
) -> None:
    route, begun = unique("postbus.test.v1.Route"), asyncio.Event()

    async def never(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        await asyncio.Event().wait()
        return b""

    server = await bus.serve(unique("queue."), [route], never, concurrency=1)
    calls = [asyncio.create_task(bus.call(route, a_call(each, 20))) for each in numbered(6)]
    await begun.wait()
    await server.cancel()

    failures = await asyncio.gather(*calls, return_exceptions=True)
    failed = [(f.reason, f.outcome) for f in failures if isinstance(f, ServiceError)]
    assert sorted(failed) == sorted(
        [("SERVER_STOPPED", Outcome.UNKNOWN)] + 5 * [("SERVER_STOPPED", Outcome.NO_EFFECT)]
    )


async def test_server_that_stops_before_all_calls_have_started_keeps_the_connection(
    bus: AmqpBus, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method_queues, "_DRAIN_SECONDS", 0.0001)
    route, other = unique("postbus.test.v1.Route"), unique("postbus.test.v1.Route")
    begun, release = asyncio.Event(), asyncio.Event()

    async def hold(called: str, body: bytes, _service: str) -> bytes:
        if called == route:
            begun.set()
        await release.wait()
        return await echo(called, body)

    staying = await bus.serve(unique("queue."), [other], hold)
    server = await bus.serve(unique("queue."), [route], hold, concurrency=1)
    elsewhere = asyncio.create_task(bus.call(other, a_call(b"elsewhere", 20)))
    calls = [bus.call(route, a_call(each, 20)) for each in (b"first", b"second")]
    first, second = map(asyncio.create_task, calls)
    await begun.wait()
    stopping = asyncio.create_task(server.cancel())

    with pytest.raises(ServiceError, match="SERVER_STOPPED"):
        await second
    release.set()

    assert [(await each).payload for each in (first, elsewhere)] == [b"first", b"elsewhere"]
    await stopping
    await staying.cancel()


@pytest.mark.parametrize("size", [1, 17 * 2**10], ids=["batch", "single calls"])
async def test_stopping_server_returns_unstarted_calls_to_the_queue(
    bus: AmqpBus, unique: Unique, size: int
) -> None:
    route, queue = unique("postbus.test.v1.Route"), unique("queue.")
    begun, release, returned = asyncio.Event(), asyncio.Event(), asyncio.Semaphore(0)

    async def hold(route: str, body: bytes, _service: str) -> bytes:
        begun.set()
        await release.wait()
        return await echo(route, body)

    async def count(route: str, body: bytes, _service: str) -> bytes:
        returned.release()
        return await echo(route, body)

    first = await bus.serve(queue, [route], hold, concurrency=1)
    calls = asyncio.create_task(call_all(bus, route, [bytes(size)] * 4))
    await begun.wait()
    second = await bus.serve(queue, [route], count)
    stopping = asyncio.create_task(first.cancel())
    async with asyncio.timeout(4):
        for _ in range(3):
            await returned.acquire()
    release.set()

    assert await calls == [bytes(size)] * 4
    await asyncio.gather(stopping, second.cancel())


async def test_stopping_server_hands_on_calls_of_any_deadline(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route, other, queue = (
        unique("postbus.test.v1.Route"),
        unique("postbus.test.v1.Route"),
        unique("queue."),
    )
    replies = await reply_queue(channel)
    begun, release = asyncio.Event(), asyncio.Event()

    async def hold(route: str, body: bytes, _service: str) -> bytes:
        begun.set()
        await release.wait()
        return await echo(route, body)

    deadlines = {"first": 2**62, "far": 2**62, "past": 1, "near": int(time.time() * 1000) + 20_000}
    requests = [Request(deadline_unix_ms=each) for each in deadlines.values()]
    batch = Batch(correlation_ids=[*deadlines], messages=[encode(each) for each in requests])
    first = await bus.serve(queue, [route], hold, concurrency=1)
    exchange = await channel.get_exchange(CALLS)
    await exchange.publish(new_message(bytes(batch), reply_to=replies.name), f"{route}/batch")
    await begun.wait()
    second = await bus.serve(queue, [route], echo)
    staying = await bus.serve(unique("queue."), [other], hold)
    elsewhere = asyncio.create_task(bus.call(other, a_call(b"elsewhere", 20)))
    stopping = asyncio.create_task(first.cancel())

    answered: set[str] = set()
    async with asyncio.timeout(10), replies.iterator() as messages:
        while not answered >= {"far", "near"}:
            message = await anext(messages)
            one = message.correlation_id
            answered.update([one] if one else decode(Batch, message.body).correlation_ids)
    release.set()

    assert (await elsewhere).payload == b"elsewhere"
    await asyncio.gather(stopping, second.cancel(), staying.cancel())


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        (b"\xff\xff", ["MALFORMED_MESSAGE"]),
        (bytes(Batch(correlation_ids=["1"], messages=[])), ["MALFORMED_BATCH"]),
        (bytes(Batch(correlation_ids=["1"] * 65, messages=[b"bad"] * 65)), ["MALFORMED_BATCH"]),
        (bytes(Batch(correlation_ids=["1"] * 64, messages=[bytes(2**15)] * 64)),
         ["BATCH_TOO_LARGE"]),
        (bytes(Batch(correlation_ids=["x" * 256], messages=[b"bad"])), ["MALFORMED_BATCH"]),
        (bytes(Batch(correlation_ids=["é" * 128], messages=[b"bad"])), ["MALFORMED_BATCH"]),
        (b"", ["MALFORMED_BATCH"]),
    ],
    ids=["malformed", "uneven", "too many", "too large", "long id", "long id in UTF-8", "empty"],
)  # fmt: skip
async def test_bad_batch_is_dropped_unhandled(
    bus: AmqpBus,
    channel: aio_pika.abc.AbstractChannel,
    unique: Unique,
    body: bytes,
    reasons: list[str],
) -> None:
    route, queue, handled = unique("postbus.test.v1.Route"), unique("queue."), 0

    async def count(route: str, body: bytes, _service: str) -> bytes:
        nonlocal handled
        handled += 1
        return await echo(route, body)

    server = await bus.serve(queue, [route], count)
    exchange = await channel.get_exchange(CALLS)

    with structlog.testing.capture_logs() as lines:
        await exchange.publish(new_message(body, reply_to="test.none"), f"{route}/batch")
        assert await call_all(bus, route, numbered(3)) == numbered(3)

    assert handled == 3
    refusals = [each for each in lines if each["event"] == "security.bus_message_refused"]
    assert [(each["name"], each["reason"]) for each in refusals] == [(route, *reasons)]
    await server.cancel()
    assert (await channel.declare_queue(f"{queue}.{route}")).declaration_result.message_count == 0


async def test_flood_of_bad_batches_is_counted_and_writes_a_hundred_lines(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route, queue = unique("postbus.test.v1.Route"), unique("queue.")
    server = await bus.serve(queue, [route], echo)
    exchange = await channel.get_exchange(CALLS)

    with capture_logs() as lines:
        for _ in range(120):
            await exchange.publish(new_message(b"\xff", reply_to="test.none"), f"{route}/batch")
        assert await call_all(bus, route, numbered(3)) == numbered(3)
        await server.cancel()

    assert [line["event"] for line in lines] == ["security.bus_message_refused"] * 100
    assert bus.security_log.counts["security.bus_message_refused"] == 120


async def test_batch_at_the_bounds_is_answered(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route, replies = unique("postbus.test.v1.Route"), await reply_queue(channel)
    server = await bus.serve(unique("queue."), [route], echo)
    exchange = await channel.get_exchange(CALLS)
    ids = [f"{number:0255}" for number in range(64)]
    request = encode(Request(payload=b"here"))
    body = bytes(Batch(correlation_ids=ids, messages=[request] * 64))

    await exchange.publish(new_message(body, reply_to=replies.name), f"{route}/batch")

    answered: list[str] = []
    async with asyncio.timeout(5), replies.iterator() as messages:
        while len(answered) < 64:
            answered += decode(Batch, (await anext(messages)).body).correlation_ids
    assert sorted(answered) == ids
    await server.cancel()


async def test_bad_batch_of_replies_is_dropped(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(CALLS, route)
    replies = await channel.get_exchange(REPLIES)
    call = asyncio.create_task(bus.call(route, a_call(b"x")))
    async with queue.iterator() as messages:
        request = await anext(messages)
    assert request.reply_to
    assert request.correlation_id
    for body in (b"\xff", bytes(Batch(correlation_ids=["1", "2"], messages=[b""]))):
        await replies.publish(new_message(body), request.reply_to)

    good = Batch(
        correlation_ids=["unknown", request.correlation_id],
        messages=[b"", encode(Reply(payload=b"here"))],
    )
    await replies.publish(new_message(bytes(good)), request.reply_to)

    assert (await call).payload == b"here"


async def test_control_with_an_id_that_amqp_can_not_carry_is_ignored(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = f"postbus.bus.v1.{unique('Route')}.test"
    replies = await reply_queue(channel)
    handled: list[bytes] = []

    def record(route: str, body: bytes, _service: str) -> Awaitable[bytes]:
        handled.append(decode(Request, body).payload)
        return echo(route, body)

    server = await bus.serve(unique("queue."), [route], record)
    exchange = await channel.get_exchange(CONTROL)
    for reply_to, correlation_id, payload in (
        ("x" * 256, "1", b"long reply-to"),
        ("é" * 128, "1", b"long reply-to in UTF-8"),
        (replies.name, "x" * 256, b"long id"),
        (replies.name, "x" * 255, b"longest id"),
    ):
        control = Control(
            reply_to=reply_to, correlation_id=correlation_id, request=a_call(payload).request
        )
        await exchange.publish(new_message(bytes(control)), route)

    async with asyncio.timeout(5), replies.iterator() as answers:
        assert (await anext(answers)).correlation_id == "x" * 255
    assert handled == [b"longest id"]
    await server.cancel()


@pytest.mark.parametrize("size", [1, 16 * 2**10], ids=["batches", "single calls"])
async def test_server_refuses_calls_beyond_1024_and_answers_the_rest(
    bus: AmqpBus, unique: Unique, size: int
) -> None:
    route, inspection = unique("postbus.test.v1.Route"), f"postbus.bus.v1.{unique('Route')}.test"
    begun, all_begun, release = 0, asyncio.Event(), asyncio.Event()

    async def hold(route: str, body: bytes, _service: str) -> bytes:
        nonlocal begun
        if route == inspection:
            return await echo(route, body)
        begun += 1
        if begun == 1024:
            all_begun.set()
        await release.wait()
        return encode(Reply(payload=b"done"))

    server = await bus.serve(unique("queue."), [route, inspection], hold, concurrency=2048)
    calls = [asyncio.create_task(bus.call(route, a_call(bytes(size), 25))) for _ in range(1024)]
    await asyncio.wait_for(all_begun.wait(), 20)

    more = [bus.call(route, a_call(bytes(size))) for _ in range(10)]
    for refusal in await asyncio.gather(*more, return_exceptions=True):
        assert isinstance(refusal, ServiceError)
        assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert (refusal.outcome, refusal.retry_after) == (Outcome.NO_EFFECT, 1)
    assert await bus.broadcast(inspection, a_call(b"full", 0.3)) == []
    release.set()

    assert [(await each).payload for each in calls] == [b"done"] * 1024
    assert (await bus.call(route, a_call(bytes(size)))).payload == b"done"
    assert (await bus.call(inspection, a_call(b"free"))).payload == b"free"
    await server.cancel()


async def test_server_refuses_calls_beyond_its_byte_limit(bus: AmqpBus, unique: Unique) -> None:
    route, release = unique("postbus.test.v1.Route"), asyncio.Event()

    async def hold(_route: str, _body: bytes, _service: str) -> bytes:
        await release.wait()
        return encode(Reply(payload=b"done"))

    server = await bus.serve(unique("queue."), [route], hold)
    calls = [asyncio.create_task(bus.call(route, a_call(bytes(15 * 2**20), 20))) for _ in range(6)]
    refused, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(ServiceError, match="OVERLOADED"):
        await refused.pop()
    release.set()

    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [each.payload for each in answers if isinstance(each, CallResult)] == [b"done"] * 5
    assert (await bus.call(route, a_call(b"later"))).payload == b"done"
    await server.cancel()


async def test_server_keeps_the_last_1024_cancellations_of_calls_to_come(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = f"postbus.bus.v1.{unique('Route')}.test"
    server = await bus.serve(unique("queue."), [route], echo)
    controls = await channel.get_exchange(CONTROL)
    calls = await channel.get_exchange(CALLS)
    replies = await reply_queue(channel)

    cancels = [
        bytes(Control(reply_to=replies.name, correlation_id=str(number), cancel=True))
        for number in range(1025)
    ]
    await controls.publish(new_message(cancels[0]), route)
    await asyncio.gather(*(controls.publish(new_message(each), route) for each in cancels[1:]))
    assert await bus.broadcast(route, a_call(b"all came", 1)) == [b"all came"]
    for name in ("1024", "0"):
        call = new_message(
            a_call(b"x").request, reply_to=replies.name, correlation_id=name, expiration=5
        )
        await calls.publish(call, route)

    async with asyncio.timeout(5), replies.iterator() as answers:
        assert (await anext(answers)).correlation_id == "0"
    await server.cancel()


Settle = Callable[[AmqpBus, str, pytest.MonkeyPatch], Awaitable[object]]


async def settle_singles(bus: AmqpBus, route: str, _: pytest.MonkeyPatch) -> None:
    for _number in range(3):
        await bus.call(route, a_call(b"x"))


async def settle_batches(bus: AmqpBus, route: str, _: pytest.MonkeyPatch) -> None:
    await call_all(bus, route, numbered(20))


async def settle_refused(bus: AmqpBus, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(call_receiver, "_MAX_BYTES", -1)
        for failure in await asyncio.gather(
            *(bus.call(route, a_call(b"x")) for _ in range(4)), return_exceptions=True
        ):
            assert isinstance(failure, ServiceError)
            assert failure.reason == "OVERLOADED"


async def settle_raised(bus: AmqpBus, route: str, _: pytest.MonkeyPatch) -> None:
    await publish_raw(bus, route, a_call(b"raise").request)
    await settle_singles(bus, route, _)


async def publish_raw(bus: AmqpBus, key: str, body: bytes) -> None:
    """Publish a message that does not expire."""
    session = bus._session
    assert session is not None
    header = properties("", correlation_id="1", reply_to="test.nowhere", user_id="test")
    (await session.publishers.open(CALLS)).publish(CALLS, key, header, body)


async def settle_cancelled(bus: AmqpBus, route: str, _: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await bus.call(route, a_call(b"wait"))
    await settle_singles(bus, route, _)


async def settle_bad_batch(bus: AmqpBus, route: str, _: pytest.MonkeyPatch) -> None:
    await publish_raw(bus, f"{route}/batch", b"\xff")
    await settle_singles(bus, route, _)


@pytest.mark.parametrize(
    "settle",
    [
        settle_singles,
        settle_batches,
        settle_refused,
        settle_raised,
        settle_cancelled,
        settle_bad_batch,
    ],
    ids=lambda each: each.__name__.removeprefix("settle_"),
)
async def test_settled_call_is_not_delivered_again(
    vhost: str, unique: Unique, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker delivers each unacknowledged message of a lost connection to another server."""
    route, queue, again = unique("postbus.test.v1.Route"), unique("queue."), list[bytes]()

    async def handle(route: str, body: bytes, _service: str) -> bytes:
        match decode(Request, body).payload:
            case b"raise":
                raise RuntimeError("unforeseen")
            case b"wait":
                await asyncio.Event().wait()
        return await echo(route, body)

    async def record(route: str, body: bytes, _service: str) -> bytes:
        again.append(decode(Request, body).payload)
        return await echo(route, body)

    with structlog.testing.capture_logs() as lines:
        async with connected_bus(vhost) as caller, connected_bus(vhost) as second:
            async with connected_bus(vhost) as first:
                await first.serve(queue, [route], handle)
                await settle(caller, route, monkeypatch)
                server = await second.serve(queue, [route], record)
            while b"last" not in again:
                await asyncio.gather(
                    caller.call(route, a_call(b"last", 0.5)), return_exceptions=True
                )
            await server.cancel()
    assert set(again) == {b"last"}
    assert [line["event"] for line in lines].count("security.bus_message_refused") <= 1


async def test_call_whose_server_dies_is_answered_by_another(vhost: str, unique: Unique) -> None:
    route, queue, begun = unique("postbus.test.v1.Route"), unique("queue."), asyncio.Event()

    async def die(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        return await asyncio.Future()

    async with connected_bus(vhost) as caller, connected_bus(vhost) as second:
        async with connected_bus(vhost) as first:
            await first.serve(queue, [route], die)
            call = asyncio.create_task(caller.call(route, a_call(b"x")))
            await begun.wait()
            server = await second.serve(queue, [route], echo)

        assert (await call).payload == b"x"
        await server.cancel()


async def test_call_that_is_cancelled_while_it_waits_frees_no_slot(
    bus: AmqpBus, unique: Unique
) -> None:
    route, release, running = unique("postbus.test.v1.Route"), asyncio.Event(), 0
    begun = asyncio.Event()

    async def count(route: str, body: bytes, _service: str) -> bytes:
        nonlocal running
        running += 1
        assert running == 1
        begun.set()
        await release.wait()
        running -= 1
        return await echo(route, body)

    server = await bus.serve(unique("queue."), [route], count, concurrency=1)
    first = asyncio.create_task(bus.call(route, a_call(b"x")))
    await begun.wait()
    waiting = [asyncio.create_task(bus.call(route, a_call(b"x"))) for _ in range(3)]
    with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
        await bus.call(route, a_call(b"x", 0.05))  # all have arrived
    for call in waiting:
        call.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    last = [asyncio.create_task(bus.call(route, a_call(b"x"))) for _ in range(2)]
    with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
        await bus.call(route, a_call(b"x", 0.05))
    release.set()

    assert [(await call).payload for call in (first, *last)] == [b"x"] * 3
    await server.cancel()


async def test_caller_without_batch_support_gets_single_replies(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route, replies = unique("postbus.test.v1.Route"), await reply_queue(channel)
    server = await bus.serve(unique("queue."), [route], echo)
    exchange = await channel.get_exchange(CALLS)

    await asyncio.gather(
        *(
            exchange.publish(
                new_message(
                    a_call(b"x").request, reply_to=replies.name, correlation_id=str(number)
                ),
                route,
            )
            for number in range(10)
        )
    )

    async with asyncio.timeout(5), replies.iterator() as messages:
        ids = [(await anext(messages)).correlation_id for _ in range(10)]
    assert sorted(map(str, ids)) == [str(number) for number in range(10)]
    await server.cancel()


async def test_call_to_a_server_that_is_stopping_is_unroutable(
    bus: AmqpBus, unique: Unique
) -> None:
    route, begun, release = unique("postbus.test.v1.Route"), asyncio.Event(), asyncio.Event()

    async def hold(route: str, body: bytes, _service: str) -> bytes:
        begun.set()
        await release.wait()
        return await echo(route, body)

    server = await bus.serve(unique("queue."), [route], hold, concurrency=1)
    calls = [asyncio.create_task(bus.call(route, a_call(b"x"))) for _ in range(2)]
    await begun.wait()
    stopping = asyncio.create_task(server.cancel())
    reasons = list[str]()
    while "NO_ROUTE" not in reasons:
        with pytest.raises(ServiceError) as raised:
            await bus.call(route, a_call(b"late", 0.05))
        reasons.append(raised.value.reason)
    assert not stopping.done()
    release.set()

    assert [(await call).payload for call in calls] == [b"x"] * 2
    await stopping


async def test_server_that_starts_while_the_last_one_stops_gets_calls(
    bus: AmqpBus, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    route, queue = unique("postbus.test.v1.Route"), unique("queue.")
    first = await bus.serve(queue, [route], echo)
    request_all, second = MessageChannel.request_all, list[Any]()

    async def start_another_and_unbind(self: MessageChannel, methods: Any) -> Any:
        if not second and isinstance(methods[0], Queue.Unbind):
            second.append(None)
            second[0] = await bus.serve(queue, [route], echo)
        return await request_all(self, methods)

    monkeypatch.setattr(MessageChannel, "request_all", start_another_and_unbind)
    await first.cancel()

    assert (await bus.call(route, a_call(b"x"))).payload == b"x"
    assert await call_all(bus, route, numbered(5)) == numbered(5)
    await second[0].cancel()


async def test_channel_of_a_stopping_server_stays_open_until_its_calls_have_ended(
    bus: AmqpBus, vhost: str, unique: Unique
) -> None:
    route, queue = unique("postbus.test.v1.Route"), unique("queue.")
    begun, release = asyncio.Event(), asyncio.Event()

    async def hold(route: str, body: bytes, _service: str) -> bytes:
        begun.set()
        await release.wait()
        return await echo(route, body)

    server = await bus.serve(queue, [route], hold)
    call = asyncio.create_task(bus.call(route, a_call(b"x")))
    await begun.wait()
    stopping = asyncio.create_task(server.cancel())
    async with BrokerConnection.open(vhost, "test") as connection, asyncio.timeout(5):
        while await connection.consumer_count(f"{queue}.{route}") is not None:
            pass
        for _ in range(5):
            await connection.consumer_count(f"{queue}.{route}")
    assert not stopping.done()
    release.set()

    assert (await call).payload == b"x"
    await stopping
