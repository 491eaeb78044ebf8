"""Budgets are relative: no answer depends on comparing the clocks of caller and callee."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import aio_pika
import pytest

from postbus import reasons
from postbus.bus.v1 import Batch, Code, Completed, Control, Outcome, Reply, Request
from shared.bus import Call, MessageBus, call_method
from shared.bus.amqp.amqp_bus import AmqpBus
from shared.bus.call import budget_of, read_request, spend_budget, with_budget
from shared.bus.call_errors import unavailable
from shared.bus.memory import MemoryBus
from shared.errors import ServiceError
from shared.wire import decode, encode
from tests.buses import opened_bus
from tests.messages import CALLS, CONTROL, reply_queue
from tests.shared.test_client import LIKE

Unique = Callable[[str], str]
Channel = aio_pika.abc.AbstractChannel


@pytest.fixture(params=["memory", "amqp"])
async def bus(request: pytest.FixtureRequest, vhost: str) -> AsyncIterator[MessageBus]:
    if request.param == "memory":
        yield MemoryBus()
        return
    async with opened_bus(vhost) as connected:
        yield connected


@pytest.fixture
async def amqp(vhost: str) -> AsyncIterator[AmqpBus]:
    async with opened_bus(vhost) as connected:
        yield connected


@pytest.fixture
async def channel(vhost: str) -> AsyncIterator[Channel]:
    async with await aio_pika.connect(vhost) as connection:
        yield await connection.channel()


def budget(request: bytes) -> float:
    return budget_of(read_request(request))


async def end(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_last_budget_of_a_request_counts() -> None:
    request = encode(Request(payload=b"x", budget_ms=5000))

    again = with_budget(with_budget(request, 4), 1.5)

    assert decode(Request, again) == Request(payload=b"x", budget_ms=1500)


@pytest.mark.parametrize(("seconds", "milliseconds"), [(0.0001, 1), (-5, 1), (10**9, 86_400_000)])
def test_budget_of_a_sent_request_is_between_a_millisecond_and_a_day(
    seconds: float, milliseconds: int
) -> None:
    assert decode(Request, with_budget(b"", seconds)).budget_ms == milliseconds


@pytest.mark.parametrize("deadline", [0, 1, 2**62])
def test_budget_counts_and_not_the_deadline_by_the_callers_clock(deadline: int) -> None:
    assert budget(encode(Request(budget_ms=2500, deadline_unix_ms=deadline))) == 2.5


def test_request_of_the_previous_release_has_the_budget_of_its_deadline() -> None:
    request = Request(deadline_unix_ms=int(time.time() * 1000) + 5000)

    assert 4 < budget(encode(request)) <= 5


def test_call_carries_a_deadline_for_callees_of_the_previous_release() -> None:
    request = decode(Request, Call.new(b"", budget=5).request)

    assert 4 < request.deadline_unix_ms / 1000 - time.time() <= 5


def test_time_in_the_queue_of_the_server_is_spent() -> None:
    request = encode(Request(budget_ms=2000))

    spent = spend_budget(request, 0.5)

    assert spent is not None
    assert budget(spent) == 1.5
    assert spend_budget(request, 2) is None
    assert spend_budget(b"\xff", 2) == b"\xff"  # the handler refuses it


async def test_handler_gets_the_budget_that_is_left_after_the_wait_for_a_slot(
    bus: MessageBus, unique: Unique
) -> None:
    route, received, begun = unique("postbus.test.v1.Route"), list[float](), asyncio.Event()
    release = asyncio.Event()

    async def serve_one(_route: str, body: bytes, _service: str) -> bytes:
        received.append(budget(body))
        begun.set()
        await release.wait()
        return encode(Reply())

    server = await bus.serve(unique("queue."), [route], serve_one, concurrency=1)
    first = asyncio.create_task(bus.call(route, Call.new(b"", budget=5)))
    await begun.wait()
    second = asyncio.create_task(bus.call(route, Call.new(b"", budget=5)))
    with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):  # lets the second call wait
        await bus.call(route, Call.new(b"", budget=0.2))
    release.set()

    await asyncio.gather(first, second)
    assert 4 < received[1] < 4.9
    await server.cancel()


async def test_call_whose_budget_ends_in_the_queue_of_the_server_has_no_effect(
    amqp: AmqpBus, channel: Channel, unique: Unique
) -> None:
    """The caller sends no cancellation."""
    route, begun, release, calls = (
        unique("postbus.test.v1.Route"),
        asyncio.Event(),
        asyncio.Event(),
        0,
    )

    async def hold(_route: str, _body: bytes, _service: str) -> bytes:
        nonlocal calls
        calls += 1
        begun.set()
        await release.wait()
        return encode(Reply())

    server = await amqp.serve(unique("queue."), [route], hold, concurrency=1)
    first = asyncio.create_task(amqp.call(route, Call.new(b"", budget=5)))
    await begun.wait()
    replies = await reply_queue(channel)
    calls_exchange = await channel.get_exchange(CALLS)
    short = aio_pika.Message(
        encode(Request(budget_ms=50, deadline_unix_ms=2**62)),
        reply_to=replies.name,
        correlation_id="short",
        user_id="test",
    )
    await calls_exchange.publish(short, route)
    with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):  # lets the budget end
        await amqp.call(route, Call.new(b"", budget=0.2))
    release.set()

    async with asyncio.timeout(5), replies.iterator() as messages:
        error = decode(Reply, (await anext(messages)).body).error

    assert (error.code, error.outcome) == (Code.DEADLINE_EXCEEDED, Outcome.NO_EFFECT)
    assert calls == 1
    await first
    await server.cancel()


async def test_call_is_cancelled_at_its_server_when_its_budget_ends(
    bus: MessageBus, unique: Unique
) -> None:
    """A server that knows no budget stops as well."""
    route, begun, cancelled = unique("postbus.test.v1.Route"), asyncio.Event(), asyncio.Event()

    async def never(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    server = await bus.serve(unique("queue."), [route], never)
    with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
        await bus.call(route, Call.new(b"", budget=0.3))

    assert begun.is_set()
    async with asyncio.timeout(2):
        await cancelled.wait()
    await server.cancel()


async def test_budgets_of_one_batch_differ_by_less_than_100_ms(
    amqp: AmqpBus, channel: Channel, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    queue = await channel.declare_queue(exclusive=True)
    for key in (route, f"{route}/batch"):
        await queue.bind(CALLS, key)
    seconds = [5.05, 5.04, 9.05, 5.03, 5.25, 9.04, 5.02, 9.03]
    calls = [asyncio.create_task(amqp.call(route, Call.new(b"", budget=each))) for each in seconds]
    batches: list[list[float]] = []
    async with asyncio.timeout(5), queue.iterator() as messages:
        while sum(map(len, batches)) < len(seconds):
            message = await anext(messages)
            alone = bool(message.correlation_id)
            requests = [message.body] if alone else decode(Batch, message.body).messages
            batches.append([budget(each) for each in requests])
            assert message.expiration == pytest.approx(max(batches[-1]), abs=0.01)

    assert all(max(each) - min(each) < 0.1 for each in batches)
    assert sorted(map(len, batches)) == [1, 1, 3, 3]
    await end(*calls)


async def test_call_of_a_returned_batch_is_sent_again_with_its_remaining_budget(
    amqp: AmqpBus, channel: Channel, unique: Unique
) -> None:
    """Its deadline by the clock has passed: the clock was set while the call was pending."""
    route = unique("postbus.test.v1.Route")
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(CALLS, route)
    sent = [Call.new(b"", budget=5) for _ in range(3)]
    for call in sent:
        call.request = encode(Request(deadline_unix_ms=1, payload=b"x"))
    calls = [asyncio.create_task(amqp.call(route, each)) for each in sent]

    async with asyncio.timeout(5), queue.iterator() as messages:
        found = [await anext(messages) for _ in calls]

    for message in found:
        assert message.expiration == pytest.approx(budget(message.body), abs=0.01)
        assert 4 < budget(message.body) <= 5
    await end(*calls)


@pytest.mark.parametrize("number", [1, 3], ids=["single", "batch"])
async def test_stopping_server_hands_on_the_remaining_budget(
    amqp: AmqpBus, vhost: str, unique: Unique, number: int
) -> None:
    route, queue, begun = unique("postbus.test.v1.Route"), unique("queue."), asyncio.Event()
    release, received = asyncio.Event(), list[float]()

    async def hold(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        await release.wait()
        return encode(Reply())

    async def record(_route: str, body: bytes, _service: str) -> bytes:
        received.append(budget(body))
        return encode(Reply())

    async with opened_bus(vhost) as other:
        first = await amqp.serve(queue, [route], hold, concurrency=1)
        held = asyncio.create_task(amqp.call(route, Call.new(b"", budget=9)))
        await begun.wait()
        calls = [
            asyncio.create_task(amqp.call(route, Call.new(b"", budget=5))) for _ in range(number)
        ]
        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):  # lets the calls wait
            await amqp.call(route, Call.new(b"", budget=0.3))
        second = await other.serve(queue, [route], record)
        stopping = asyncio.create_task(first.cancel())
        async with asyncio.timeout(5):
            await asyncio.gather(*calls)
        release.set()
        await asyncio.gather(held, stopping)
        await second.cancel()

    assert len(received) == number
    assert all(3.5 < each < 4.8 for each in received)


async def test_repeated_call_carries_the_remaining_budget(
    amqp: AmqpBus, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    route, received = unique("postbus.test.v1.Route"), list[float]()

    async def fail_first(_route: str, body: bytes, _service: str) -> bytes:
        received.append(budget(body))
        if len(received) == 1:
            error = unavailable(reasons.CONNECTION_LOST, "Lost.", Outcome.UNKNOWN)
            return encode(Reply(error=error.to_message("")))
        return encode(Reply())

    monkeypatch.setattr("shared.bus.client._RETRY_DELAY", 0.4)
    server = await amqp.serve(unique("queue."), [route], fail_first)

    await call_method(amqp, LIKE, Call.new(b"", budget=5), route)

    assert received[0] - received[1] > 0.15
    await server.cancel()


async def test_stream_and_broadcast_carry_their_budget(bus: MessageBus, unique: Unique) -> None:
    route, received = f"postbus.bus.v1.{unique('Route')}.test", list[float]()

    async def one(_route: str, body: bytes, _service: str) -> bytes:
        received.append(budget(body))
        return encode(Reply())

    async def stream(_route: str, body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        received.append(budget(body))
        yield encode(Reply(completed=Completed(), sequence=1))

    def handle(called: str, body: bytes, service: str) -> object:
        return (stream if called == routes[1] else one)(called, body, service)

    routes = [route, f"postbus.bus.v1.{unique('Stream')}.test"]
    server = await bus.serve(unique("queue."), routes, handle)  # type: ignore[arg-type]  # both kinds
    async for _ in bus.stream(routes[1], Call.new(b"", budget=5)):
        pass
    await bus.broadcast(route, Call.new(b"", budget=0.5))

    assert 4 < received[0] <= 5
    assert 0.3 < received[1] <= 0.5
    await server.cancel()


async def test_call_that_could_not_be_sent_in_time_is_not_cancelled_at_the_servers(
    amqp: AmqpBus, channel: Channel, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control messages of expired calls would pile up behind a blocked socket."""
    route = unique("postbus.test.v1.Route")
    controls = await channel.declare_queue(exclusive=True)
    await controls.bind(CONTROL, route)
    sink = await channel.declare_queue(exclusive=True)
    await sink.bind(CALLS, route)
    session = amqp._session
    assert session is not None
    monkeypatch.setattr(session.publishing.transport, "wait_writable", asyncio.Event().wait)
    for writable in (False, True):
        session.publishing.transport.writable = writable
        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
            await amqp.call(route, Call.new(b"", budget=0.2))

    async with asyncio.timeout(5), controls.iterator() as messages:
        control = decode(Control, (await anext(messages)).body)
    assert control.cancel
    assert await controls.get(fail=False) is None
