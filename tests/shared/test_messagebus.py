"""The guarantees of MessageBus, for every transport."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import aio_pika
import pytest
from pydantic import SecretStr

from postbus.bus.v1 import Code, Completed, Error, Event, Outcome, Reply, Request
from shared.bus import MessageBus, message_bus
from shared.bus.amqp import connect
from shared.bus.memory import MemoryBus
from shared.bus.message_bus import EventHandler, Failure, RpcHandler, StreamSubscription
from shared.errors import ServiceError
from shared.wire import decode, encode
from tests.buses import a_call, echo, opened_bus

Unique = Callable[[str], str]
DELAYS = (0.1, 0.4)


@pytest.fixture(params=["memory", "amqp"])
async def bus(request: pytest.FixtureRequest, vhost: str) -> AsyncIterator[MessageBus]:
    if request.param == "memory":
        yield MemoryBus(DELAYS)
        return
    async with opened_bus(vhost, delays=DELAYS, keep_events=True) as connected:
        yield connected


async def test_call_returns_the_payload_of_the_reply(bus: MessageBus, unique: Unique) -> None:
    route = unique("postbus.test.v1.Route")
    server = await bus.serve(unique("queue."), [route], echo)

    assert (await bus.call(route, a_call(b"hello"))).payload == b"hello"

    await server.cancel()


async def test_concurrent_calls_get_each_its_own_reply(bus: MessageBus, unique: Unique) -> None:
    route = unique("postbus.test.v1.Route")
    server = await bus.serve(unique("queue."), [route], echo)
    payloads = [str(number).encode() for number in range(200)]

    replies = await asyncio.gather(*(bus.call(route, a_call(each)) for each in payloads))

    assert [reply.payload for reply in replies] == payloads
    await server.cancel()


async def test_unroutable_call_is_unavailable_at_once(bus: MessageBus, unique: Unique) -> None:
    began = time.monotonic()

    with pytest.raises(ServiceError) as raised:
        await bus.call(unique("postbus.test.v1.Unserved"), a_call())

    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "NO_ROUTE")
    assert raised.value.outcome is Outcome.NO_EFFECT
    assert time.monotonic() - began < 1


async def test_call_to_a_stopped_server_is_unavailable_at_once(
    bus: MessageBus, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    server = await bus.serve(unique("queue."), [route], echo)
    await server.cancel()
    began = time.monotonic()

    with pytest.raises(ServiceError) as raised:
        await bus.call(route, a_call())

    assert raised.value.reason == "NO_ROUTE"
    assert time.monotonic() - began < 1


async def test_unanswered_call_fails_at_its_deadline(bus: MessageBus, unique: Unique) -> None:
    route = unique("postbus.test.v1.Route")
    answered = asyncio.Event()

    async def late(_route: str, _body: bytes, _service: str) -> bytes:
        await answered.wait()
        return encode(Reply())

    server = await bus.serve(unique("queue."), [route], late)
    began = time.monotonic()

    with pytest.raises(ServiceError) as raised:
        await bus.call(route, a_call(seconds=0.3))

    assert raised.value.code is Code.DEADLINE_EXCEEDED
    assert raised.value.outcome is Outcome.UNKNOWN
    assert 0.25 < time.monotonic() - began < 1
    answered.set()
    await server.cancel()


async def test_expired_calls_do_not_affect_a_waiting_call(bus: MessageBus, unique: Unique) -> None:
    route = unique("postbus.test.v1.Route")
    answered = asyncio.Event()

    async def late(_route: str, body: bytes, _service: str) -> bytes:
        await answered.wait()
        return await echo(_route, body)

    server = await bus.serve(unique("queue."), [route], late)
    waiting = asyncio.create_task(bus.call(route, a_call(b"waiting")))
    for _ in range(20):
        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
            await bus.call(route, a_call(seconds=0.002))
    answered.set()

    assert (await waiting).payload == b"waiting"
    await server.cancel()


async def test_error_of_the_server_is_rebuilt_at_the_caller(
    bus: MessageBus, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")

    async def refuse(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(
            Reply(
                error=Error(
                    code=Code.try_value(Code.NOT_FOUND), reason="GONE", message="No.", trace_id="t"
                )
            )
        )

    server = await bus.serve(unique("queue."), [route], refuse)

    with pytest.raises(ServiceError) as raised:
        await bus.call(route, a_call())

    error = raised.value
    assert (error.code, error.reason, error.message, error.trace_id) == (
        Code.NOT_FOUND,
        "GONE",
        "No.",
        "t",
    )
    await server.cancel()


async def test_cancelled_server_finishes_its_running_calls(bus: MessageBus, unique: Unique) -> None:
    route = unique("postbus.test.v1.Route")
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        await release.wait()
        return encode(Reply(payload=b"done"))

    server = await bus.serve(unique("queue."), [route], slow)
    call = asyncio.create_task(bus.call(route, a_call()))
    await begun.wait()
    stopping = asyncio.create_task(server.cancel())
    release.set()

    assert (await call).payload == b"done"
    await stopping


async def test_last_server_answers_its_waiting_calls_before_it_stops(
    bus: MessageBus, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow(_route: str, body: bytes, _service: str) -> bytes:
        begun.set()
        await release.wait()
        return await echo(_route, body)

    server = await bus.serve(unique("queue."), [route], slow, concurrency=1)
    calls = [asyncio.create_task(bus.call(route, a_call(b"x"))) for _ in range(5)]
    await begun.wait()
    stopping = asyncio.create_task(server.cancel())
    release.set()

    assert [each.payload for each in await asyncio.gather(*calls)] == [b"x"] * 5
    await stopping


async def test_servers_of_one_queue_share_its_calls(bus: MessageBus, unique: Unique) -> None:
    route, queue = unique("postbus.test.v1.Route"), unique("queue.")
    served: dict[str, int] = {"first": 0, "second": 0}

    def counting(name: str) -> RpcHandler:
        async def handler(_route: str, body: bytes, _service: str) -> bytes:
            served[name] += 1
            return await echo(_route, body)

        return handler

    first = await bus.serve(queue, [route], counting("first"), concurrency=1)
    second = await bus.serve(queue, [route], counting("second"), concurrency=1)

    await asyncio.gather(*(bus.call(route, a_call()) for _ in range(20)))

    assert served["first"] > 0
    assert served["second"] > 0
    assert sum(served.values()) == 20
    await asyncio.gather(first.cancel(), second.cancel())


async def test_every_named_queue_gets_an_event_once(bus: MessageBus, unique: Unique) -> None:
    event = unique("postbus.test.v1.Event")
    received: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    def consumer(name: str) -> EventHandler:
        async def handler(body: bytes) -> None:
            received.put_nowait((name, decode(Event, body).data))

        return handler

    names = [unique("one."), unique("two.")]
    subscriptions = [await bus.subscribe([event], consumer(name), queue=name) for name in names]

    await bus.publish(Event(id="1", type=event, data=b"sent"))

    async with asyncio.timeout(5):
        deliveries = {await received.get(), await received.get()}
    assert deliveries == {(names[0], b"sent"), (names[1], b"sent")}
    assert received.empty()
    for subscription in subscriptions:
        await subscription.cancel()


async def test_named_queue_keeps_events_without_a_consumer(bus: MessageBus, unique: Unique) -> None:
    event, queue = unique("postbus.test.v1.Event"), unique("queue.")
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def keep(body: bytes) -> None:
        received.put_nowait(decode(Event, body).data)

    await (await bus.subscribe([event], keep, queue=queue)).cancel()
    await bus.publish(Event(id="1", type=event, data=b"kept"))
    subscription = await bus.subscribe([event], keep, queue=queue)

    async with asyncio.timeout(5):
        assert await received.get() == b"kept"
    await subscription.cancel()


async def test_unnamed_queue_receives_events_from_the_subscription_on(
    bus: MessageBus, unique: Unique
) -> None:
    event = unique("postbus.test.v1.Event")
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def keep(body: bytes) -> None:
        received.put_nowait(decode(Event, body).data)

    await bus.publish(Event(id="1", type=event, data=b"before"))
    subscription = await bus.subscribe([event], keep)
    await bus.publish(Event(id="2", type=event, data=b"after"))

    async with asyncio.timeout(5):
        assert await received.get() == b"after"
    await subscription.cancel()


async def read_stream(
    bus: MessageBus, stream: str, event: str, seconds: float = 60
) -> tuple[StreamSubscription, asyncio.Queue[str]]:
    """Read one type of event; return the subscription and a queue of the data of its events."""
    received: asyncio.Queue[str] = asyncio.Queue()

    async def keep(body: bytes) -> None:
        received.put_nowait(decode(Event, body).data.decode())

    return await bus.read_stream(stream, [event], keep, seconds=seconds), received


def drained(received: asyncio.Queue[str]) -> list[str]:
    return [received.get_nowait() for _ in range(received.qsize())]


async def test_stream_reader_gets_past_events_before_it_is_complete_and_new_ones_afterwards(
    bus: MessageBus, unique: Unique
) -> None:
    stream, event, other = (
        unique("stream."),
        unique("postbus.test.v1.Event"),
        unique("postbus.test.v1.Event"),
    )
    first, received_by_first = await read_stream(bus, stream, event)
    for number in range(500):
        await bus.publish(Event(id=str(number), type=event, data=b"%d" % number))
        if number % 100 == 0:
            await bus.publish(Event(id="other", type=other, data=b"other"))

    second, received = await read_stream(bus, stream, event)
    assert second.complete
    assert drained(received) == [str(number) for number in range(500)]
    await bus.publish(Event(id="new", type=event, data=b"new"))

    async with asyncio.timeout(5):
        assert await received.get() == "new"
        assert [await received_by_first.get() for _ in range(501)][-1] == "new"
    assert received.empty()
    await asyncio.gather(first.cancel(), second.cancel())


async def test_events_published_while_a_stream_reader_starts_are_not_missed(
    bus: MessageBus, unique: Unique
) -> None:
    stream, event = unique("stream."), unique("postbus.test.v1.Event")
    begin, _ = await read_stream(bus, stream, event)
    numbers = [str(number) for number in range(300)]

    async def publish() -> None:
        for number in numbers:
            await bus.publish(Event(id=number, type=event, data=number.encode()))

    publishing = asyncio.create_task(publish())
    subscriptions = [await read_stream(bus, stream, event) for _ in range(5)]
    await publishing

    async with asyncio.timeout(5):
        for subscription, received in subscriptions:
            assert [await received.get() for _ in numbers] == numbers
            await subscription.cancel()
    await begin.cancel()


async def test_stream_reader_gets_no_events_older_than_requested(
    bus: MessageBus, unique: Unique
) -> None:
    stream, event = unique("stream."), unique("postbus.test.v1.Event")
    begin, _ = await read_stream(bus, stream, event)
    await bus.publish(Event(id="old", type=event, data=b"old"))

    async with asyncio.timeout(10):
        while True:
            subscription, received = await read_stream(bus, stream, event, seconds=1)
            await subscription.cancel()
            if received.empty():
                break
            await asyncio.sleep(0.1)
    subscription, received = await read_stream(bus, stream, event, seconds=60)

    assert drained(received) == ["old"]
    await asyncio.gather(subscription.cancel(), begin.cancel())


async def test_cancelled_stream_reader_gets_nothing_more(bus: MessageBus, unique: Unique) -> None:
    stream, event = unique("stream."), unique("postbus.test.v1.Event")
    ended, received_by_ended = await read_stream(bus, stream, event)
    other, received = await read_stream(bus, stream, event)

    await ended.cancel()
    await bus.publish(Event(id="1", type=event, data=b"sent"))

    async with asyncio.timeout(5):
        assert await received.get() == "sent"
    assert received_by_ended.empty()
    await other.cancel()


async def test_stream_reader_cannot_request_more_than_the_stream_keeps(
    bus: MessageBus, unique: Unique
) -> None:
    with pytest.raises(ValueError, match="streams keep events for 3600 seconds, not for 3601"):
        await read_stream(bus, unique("stream."), unique("postbus.test.v1.Event"), seconds=3601)


async def test_cancelled_call_cancels_its_handler(bus: MessageBus, unique: Unique) -> None:
    route = unique("postbus.test.v1.Route")
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handler(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    server = await bus.serve(unique("queue."), [route], handler)
    call = asyncio.create_task(bus.call(route, a_call()))
    async with asyncio.timeout(5):
        await begun.wait()
        call.cancel()
        await ended.wait()
    await server.cancel()


async def test_broadcast_gets_a_reply_from_every_process(bus: MessageBus, unique: Unique) -> None:
    route = f"postbus.bus.v1.{unique('Route')}.test"
    queue = unique("queue.")

    def answering(payload: bytes) -> RpcHandler:
        async def handler(_route: str, _body: bytes, _service: str) -> bytes:
            return encode(Reply(payload=payload))

        return handler

    servers = [await bus.serve(queue, [route], answering(name)) for name in (b"one", b"two")]

    assert sorted(await bus.broadcast(route, a_call(seconds=0.5))) == [b"one", b"two"]
    assert await bus.broadcast(unique("postbus.test.v1.Unserved"), a_call(seconds=0.1)) == []
    for server in servers:
        await server.cancel()


class Failing:
    """A handler that fails with `failure` the first `times` times for the event `bad`."""

    def __init__(self, failure: Failure, times: int) -> None:
        self.attempts: list[float] = []
        self.handled: asyncio.Queue[bytes] = asyncio.Queue()
        self._failure = failure
        self._times = times

    async def __call__(self, body: bytes) -> Failure | None:
        data = decode(Event, body).data
        if data == b"bad":
            self.attempts.append(time.monotonic())
            if len(self.attempts) <= self._times:
                return self._failure
        self.handled.put_nowait(data)
        return None


async def dead_letter(bus: MessageBus, vhost: str, queue: str) -> tuple[bytes, str]:
    """Wait for a dead letter; return its body and the reason."""
    async with asyncio.timeout(5):
        if isinstance(bus, MemoryBus):
            return await bus.dead_letters.get()
        async with await aio_pika.connect(vhost) as connection:
            dead = await (await connection.channel()).get_queue(f"{queue}.dead", ensure=False)
            while (message := await dead.get(fail=False)) is None:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.05)
            await message.ack()
    return message.body, str(message.headers["x-postbus-reason"])


async def test_failed_event_is_retried_with_growing_delays(bus: MessageBus, unique: Unique) -> None:
    event = unique("postbus.test.v1.Event")
    failing = Failing(Failure(reason="LATER", message="Later.", retry=True), times=2)
    subscription = await bus.subscribe([event], failing, queue=unique("queue."))

    await bus.publish(Event(id="1", type=event, data=b"bad"))
    await bus.publish(Event(id="2", type=event, data=b"good"))

    async with asyncio.timeout(5):
        assert [await failing.handled.get() for _ in range(2)] == [b"good", b"bad"]
    first, second, third = failing.attempts
    assert second - first > 0.09
    assert third - second > 0.39
    await subscription.cancel()


@pytest.mark.parametrize("retry", [True, False])
async def test_event_without_retries_left_is_a_dead_letter_with_its_reason(
    bus: MessageBus, vhost: str, unique: Unique, retry: bool
) -> None:
    event, queue = unique("postbus.test.v1.Event"), unique("queue.")
    failing = Failing(Failure(reason="BROKEN", message="Broken.", retry=retry), times=100)
    subscription = await bus.subscribe([event], failing, queue=queue)

    await bus.publish(Event(id="1", type=event, data=b"bad"))
    body, reason = await dead_letter(bus, vhost, queue)

    assert (decode(Event, body).data, reason) == (b"bad", "BROKEN")
    assert len(failing.attempts) == (1 + len(DELAYS) if retry else 1)
    await subscription.cancel()


async def test_event_is_retried_without_limit_while_a_dependency_is_unavailable(
    bus: MessageBus, unique: Unique
) -> None:
    event = unique("postbus.test.v1.Event")
    failure = Failure(
        reason="DATABASE_UNAVAILABLE", message="Down.", retry=True, dependency_down=True
    )
    failing = Failing(failure, times=len(DELAYS) + 2)
    subscription = await bus.subscribe([event], failing, queue=unique("queue."))

    await bus.publish(Event(id="1", type=event, data=b"bad"))

    async with asyncio.timeout(10):
        assert await failing.handled.get() == b"bad"
    await subscription.cancel()


def test_event_is_retried_five_times_within_13_minutes() -> None:
    failure = Failure(reason="LATER", message="Later.", retry=True)

    delays = [failure.delay(attempt, message_bus.DELAYS) for attempt in range(1, 7)]

    assert delays == [1, 5, 30, 120, 600, None]


async def test_event_that_a_full_queue_refuses_is_not_published(vhost: str, unique: Unique) -> None:
    event = unique("postbus.test.v1.Event")
    async with (
        await aio_pika.connect(vhost) as connection,
        connect(SecretStr(vhost), "test") as publisher,
    ):
        channel = await connection.channel()
        full = await channel.declare_queue(
            exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
        )
        await publisher.wait_ready()
        await full.bind("postbus.events.test", event)
        session = publisher._session

        async def publish_many() -> None:
            for number in range(100):
                await publisher.publish(Event(id=str(number), type=event))

        with pytest.raises(ServiceError) as raised:
            await publish_many()

        assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "EVENT_REFUSED")
        assert publisher._session is session  # the connection is not lost


async def test_call_after_its_deadline_is_not_sent(bus: MessageBus, unique: Unique) -> None:
    route, handled = unique("postbus.test.v1.Route"), list[bytes]()

    async def record(route: str, body: bytes, _service: str) -> bytes:
        handled.append(decode(Request, body).payload)
        return await echo(route, body)

    server = await bus.serve(unique("queue."), [route], record)

    with pytest.raises(ServiceError) as raised:
        await bus.call(route, a_call(b"late", -0.001))
    assert raised.value.code is Code.DEADLINE_EXCEEDED
    assert raised.value.outcome is Outcome.NO_EFFECT
    await bus.call(route, a_call(b"next"))
    assert b"late" not in handled
    await server.cancel()


async def test_broadcast_gets_the_replies_of_the_processes_without_an_error(
    vhost: str, unique: Unique
) -> None:
    route, queue = f"postbus.bus.v1.{unique('Route')}.test", unique("queue.")

    async def fail(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(error=Error(code=Code.try_value(Code.ABORTED), reason="NO")))

    async with connect(SecretStr(vhost), "test") as amqp:
        servers = [await amqp.serve(queue, [route], each) for each in (fail, echo, fail)]

        assert await amqp.broadcast(route, a_call(b"here", 0.5)) == [b"here"]
        for server in servers:
            await server.cancel()


def numbers(count: int) -> RpcHandler:
    """Return a handler that streams the numbers up to `count`."""

    async def stream(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        for number in range(1, count + 1):
            yield encode(Reply(payload=str(number).encode(), sequence=number))
        yield encode(Reply(completed=Completed(), sequence=count + 1))

    return stream


async def test_stream_is_complete_and_in_order(bus: MessageBus, unique: Unique) -> None:
    route = unique("postbus.test.v1.Route")
    server = await bus.serve(unique("queue."), [route], numbers(500))

    streams = [[int(payload) async for payload in bus.stream(route, a_call())] for _ in range(3)]

    assert streams == [list(range(1, 501))] * 3
    await server.cancel()


async def test_error_in_the_middle_of_a_stream_ends_it(bus: MessageBus, unique: Unique) -> None:
    route = unique("postbus.test.v1.Route")

    async def stream(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        yield encode(Reply(payload=b"1", sequence=1))
        yield encode(Reply(error=Error(code=Code.try_value(Code.ABORTED), reason="ENOUGH")))

    server = await bus.serve(unique("queue."), [route], stream)
    replies = bus.stream(route, a_call())

    assert await anext(replies) == b"1"
    with pytest.raises(ServiceError, match="ENOUGH"):
        await anext(replies)
    await server.cancel()


async def test_stream_with_a_gap_is_broken_and_ends_at_its_server(
    bus: MessageBus, unique: Unique
) -> None:
    route, ended = unique("postbus.test.v1.Route"), asyncio.Event()

    async def stream(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        try:
            yield encode(Reply(payload=b"1", sequence=1))
            yield encode(Reply(payload=b"3", sequence=3))
            await asyncio.Event().wait()
        finally:
            ended.set()

    server = await bus.serve(unique("queue."), [route], stream)

    with pytest.raises(ServiceError) as raised:
        [payload async for payload in bus.stream(route, a_call())]

    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "STREAM_BROKEN")
    async with asyncio.timeout(2):
        await ended.wait()
    await server.cancel()


async def test_stream_waits_for_credit_and_ends_when_the_caller_closes_it(
    bus: MessageBus, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    made: list[int] = []
    ended = asyncio.Event()

    async def endless(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        try:
            for number in itertools.count(1):
                made.append(number)
                yield encode(Reply(payload=str(number).encode(), sequence=number))
        finally:
            ended.set()

    server = await bus.serve(unique("queue."), [route], endless)
    stream = bus.stream(route, a_call())
    async with aclosing(stream):
        for _ in range(40):
            await anext(stream)
        taken = len(made)

    async with asyncio.timeout(5):
        await ended.wait()
    assert taken <= 40 + 32 + 2
    await server.cancel()


async def test_unroutable_stream_is_unavailable(bus: MessageBus, unique: Unique) -> None:
    with pytest.raises(ServiceError) as raised:
        await anext(bus.stream(unique("postbus.test.v1.Unserved"), a_call()))

    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "NO_ROUTE")


async def test_stream_ends_at_its_deadline(bus: MessageBus, unique: Unique) -> None:
    route = unique("postbus.test.v1.Route")
    over = asyncio.Event()

    async def stalled(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        yield encode(Reply(payload=b"1", sequence=1))
        await over.wait()

    server = await bus.serve(unique("queue."), [route], stalled)

    with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
        [payload async for payload in bus.stream(route, a_call(seconds=0.5))]

    over.set()
    await server.cancel()
