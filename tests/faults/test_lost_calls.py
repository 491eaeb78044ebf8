"""A worker that dies: its calls in flight fail soon, and only these."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import aio_pika
import pytest

from postbus.bus.v1 import Code, Control, Outcome, ProbeAnswer, Reply
from shared.bus import Call
from shared.bus.amqp.amqp_bus import AmqpBus
from shared.bus.amqp.lost_calls import LostCalls, Probe
from shared.errors import ServiceError
from shared.wire import decode, encode
from tests.buses import opened_bus
from tests.messages import CALLS, CONTROL
from tests.proxy import Proxy

Unique = Callable[[str], str]


@pytest.fixture
async def proxy(vhost: str) -> AsyncIterator[Proxy]:
    async with Proxy.open(vhost) as proxy:
        yield proxy


@pytest.fixture
async def worker(vhost: str, proxy: Proxy) -> AsyncIterator[AmqpBus]:
    """Yield the bus of a worker, which dies with the proxy."""
    async with opened_bus(proxy.url) as connected:
        yield connected


@pytest.fixture
async def caller(vhost: str) -> AsyncIterator[AmqpBus]:
    async with opened_bus(vhost) as connected:
        yield connected


def lost_calls_of(bus: AmqpBus) -> LostCalls:
    session = bus._session
    assert session is not None
    return session.rpc._lost_calls


def a_probe(route: str) -> Probe:
    """Return a probe for the calls that were sent until now."""
    now = time.monotonic()
    return Probe(route, sent=now + 0.5, oldest=now)


def a_call(seconds: float = 20) -> Call:
    return Call.new(b"", budget=seconds)


async def payloads(replies: AsyncGenerator[bytes, None]) -> list[bytes]:
    return [payload async for payload in replies]


async def test_calls_and_streams_of_a_worker_that_died_fail_within_2_seconds(
    caller: AmqpBus, worker: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    routes, begun = (
        [unique("postbus.test.v1.Route"), unique("postbus.test.v1.Route")],
        asyncio.Semaphore(0),
    )

    async def never(_route: str, _body: bytes, _service: str) -> bytes:
        begun.release()
        return await asyncio.Future()

    async def stall(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        begun.release()
        yield encode(Reply(payload=b"first", sequence=1))
        await asyncio.Future()

    await worker.serve(unique("queue."), routes[:1], never)
    await worker.serve(unique("queue."), routes[1:], stall)
    calls: list[asyncio.Task[Any]] = [
        asyncio.create_task(caller.call(routes[0], a_call())) for _ in range(10)
    ]
    calls.append(asyncio.create_task(payloads(caller.stream(routes[1], a_call()))))
    async with asyncio.timeout(5):
        for _ in calls:
            await begun.acquire()
    await proxy.stop()
    died = time.monotonic()

    errors = await asyncio.gather(*calls, return_exceptions=True)

    assert time.monotonic() - died < 2
    for error in errors:
        assert isinstance(error, ServiceError)
        assert (error.code, error.reason) == (Code.UNAVAILABLE, "WORKER_LOST")
        assert (error.outcome, error.retry_after) == (Outcome.UNKNOWN, 1)


async def test_calls_of_other_routes_and_younger_calls_do_not_fail(
    caller: AmqpBus, worker: AmqpBus, proxy: Proxy, vhost: str, unique: Unique
) -> None:
    """The younger call is sent to a worker that starts after the first one has died."""
    dead, alive, begun = (
        unique("postbus.test.v1.Route"),
        unique("postbus.test.v1.Route"),
        asyncio.Event(),
    )
    release = asyncio.Event()

    async def hold(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        await release.wait()
        return encode(Reply(payload=b"done"))

    async with opened_bus(vhost) as other:
        await worker.serve(unique("queue."), [dead], hold)
        await other.serve(unique("queue."), [alive], hold)
        lost = asyncio.create_task(caller.call(dead, a_call()))
        kept = asyncio.create_task(caller.call(alive, a_call()))
        await begun.wait()
        await proxy.stop()
        with pytest.raises(ServiceError, match="WORKER_LOST"):
            await lost
        await other.serve(unique("queue."), [dead], hold)
        younger = asyncio.create_task(caller.call(dead, a_call()))
        _, pending = await asyncio.wait([kept, younger], timeout=1.2)  # two probes
        release.set()

        assert len(pending) == 2
        assert [(await each).payload for each in (kept, younger)] == [b"done", b"done"]


async def test_calls_of_a_worker_that_died_go_to_another_one(
    caller: AmqpBus, worker: AmqpBus, proxy: Proxy, vhost: str, unique: Unique
) -> None:
    route, queue, begun = unique("postbus.test.v1.Route"), unique("queue."), asyncio.Event()

    async def never(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        return await asyncio.Future()

    async def slow(_route: str, _body: bytes, _service: str) -> bytes:
        await asyncio.sleep(1)  # longer than the interval of the probes
        return encode(Reply(payload=b"done"))

    async with opened_bus(vhost) as other:
        await worker.serve(queue, [route], never)
        call = asyncio.create_task(caller.call(route, a_call()))
        await begun.wait()
        await other.serve(queue, [route], slow)
        await proxy.stop()

        assert (await call).payload == b"done"


async def test_calls_of_a_worker_that_stops_are_answered(
    caller: AmqpBus, vhost: str, unique: Unique
) -> None:
    """The last server of a queue unbinds it before its handlers have finished."""
    route, begun = unique("postbus.test.v1.Route"), asyncio.Event()

    async def slow(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        await asyncio.sleep(1.5)  # longer than the interval of the probes
        return encode(Reply(payload=b"done"))

    async with opened_bus(vhost) as worker:
        server = await worker.serve(unique("queue."), [route], slow)
        call = asyncio.create_task(caller.call(route, a_call()))
        await begun.wait()
        await server.cancel()

    assert (await call).payload == b"done"


async def test_route_is_probed_once_in_half_a_second_while_it_has_older_calls(
    caller: AmqpBus, vhost: str, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    async with await aio_pika.connect(vhost) as connection:
        channel = await connection.channel()
        calls, controls = [await channel.declare_queue(exclusive=True) for _ in range(2)]
        await calls.bind(CALLS, route)
        await calls.bind(CALLS, f"{route}/batch")
        await controls.bind(CONTROL, route)
        sent = time.monotonic()
        pending = [asyncio.create_task(caller.call(route, a_call())) for _ in range(50)]
        times: list[float] = []
        async with asyncio.timeout(5), controls.iterator() as messages:
            while len(times) < 3:
                probe = decode(Control, (await anext(messages)).body)
                times.append(time.monotonic() - sent)
                assert 500 <= probe.waiting_ms <= times[-1] * 1000
        for call in pending:
            call.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    assert times[0] > 0.5
    assert times[2] - times[0] > 0.8


async def test_session_that_is_lost_probes_no_more(
    worker: AmqpBus, proxy: Proxy, unique: Unique
) -> None:
    session = worker._session
    assert session is not None
    lost_calls = lost_calls_of(worker)

    await proxy.stop()
    async with asyncio.timeout(5):
        await session.lost.wait()

    assert lost_calls._timer.cancelled()


async def test_return_of_an_earlier_probe_fails_no_younger_call(
    caller: AmqpBus, vhost: str, unique: Unique
) -> None:
    """The worker of the younger call starts after the probe was published."""
    route, release = unique("postbus.test.v1.Route"), asyncio.Event()

    async def hold(_route: str, _body: bytes, _service: str) -> bytes:
        await release.wait()
        return encode(Reply(payload=b"done"))

    lost_calls = lost_calls_of(caller)
    async with opened_bus(vhost) as worker:
        await worker.serve(unique("queue."), [route], hold)
        lost_calls._probes = {"probe": a_probe(route)}
        call = asyncio.create_task(caller.call(route, a_call()))
        await asyncio.sleep(0)
        lost_calls.on_returned(route)
        done, _ = await asyncio.wait([call], timeout=0.3)
        release.set()

        assert not done
        assert (await call).payload == b"done"


async def test_reply_that_arrives_after_the_returned_probe_counts(
    caller: AmqpBus, unique: Unique
) -> None:
    route, begun, release = unique("postbus.test.v1.Route"), asyncio.Event(), asyncio.Event()

    async def hold(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        await release.wait()
        return encode(Reply(payload=b"done"))

    lost_calls = lost_calls_of(caller)
    await caller.serve(unique("queue."), [route], hold)
    call = asyncio.create_task(caller.call(route, a_call()))
    await begun.wait()
    lost_calls._probes = {"probe": a_probe(route)}

    lost_calls.on_returned(route)
    release.set()

    assert (await call).payload == b"done"


async def test_nothing_is_probed_while_the_socket_is_not_writable(
    caller: AmqpBus, vhost: str, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    async with await aio_pika.connect(vhost) as connection:
        channel = await connection.channel()
        calls, controls = [await channel.declare_queue(exclusive=True) for _ in range(2)]
        await calls.bind(CALLS, route)
        await controls.bind(CONTROL, route)
        pending = asyncio.create_task(caller.call(route, a_call()))
        await asyncio.sleep(0)
        assert caller._session is not None
        lost_calls = lost_calls_of(caller)
        lost_calls._sent_before = lambda _before: [("1", route, time.monotonic() - 1)]
        transport = caller._session.publishing.transport
        for writable in (False, True):
            transport.writable = writable
            lost_calls.stop()
            lost_calls._probe()

        async with asyncio.timeout(5), controls.iterator() as messages:
            await anext(messages)
        lost_calls.stop()
        assert await controls.get(fail=False) is None
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)


async def test_calls_of_a_worker_that_died_fail_although_another_one_starts_at_once(
    caller: AmqpBus, worker: AmqpBus, proxy: Proxy, vhost: str, unique: Unique
) -> None:
    route, queue, begun = unique("postbus.test.v1.Route"), unique("queue."), asyncio.Event()
    release = asyncio.Event()

    async def hold(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        await release.wait()
        return encode(Reply(payload=b"done"))

    async with opened_bus(vhost) as other:
        await worker.serve(queue, [route], hold)
        lost = asyncio.create_task(caller.call(route, a_call()))
        await begun.wait()
        await proxy.stop()
        died = time.monotonic()
        await until_deleted(caller, f"{queue}.{route}")
        await other.serve(queue, [route], hold)
        kept = asyncio.create_task(caller.call(route, a_call()))

        with pytest.raises(ServiceError, match="WORKER_LOST") as raised:
            await lost
        assert time.monotonic() - died < 2.5
        assert raised.value.outcome == Outcome.UNKNOWN
        _, pending = await asyncio.wait([kept], timeout=1.5)  # three probes
        release.set()
        assert pending
        assert (await kept).payload == b"done"


async def until_deleted(bus: AmqpBus, queue: str) -> None:
    session = bus._session
    assert session is not None
    async with asyncio.timeout(5):
        while await session.publishing.consumer_count(queue) is not None:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.02)


async def test_call_of_a_worker_that_stops_is_answered_although_another_one_starts(
    caller: AmqpBus, vhost: str, unique: Unique
) -> None:
    route, queue, begun = unique("postbus.test.v1.Route"), unique("queue."), asyncio.Event()

    async def slow(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        await asyncio.sleep(2)  # two probes after the start of the new worker
        return encode(Reply(payload=b"done"))

    async with opened_bus(vhost) as old, opened_bus(vhost) as new:
        server = await old.serve(queue, [route], slow)
        call = asyncio.create_task(caller.call(route, a_call()))
        await begun.wait()
        stopping = asyncio.create_task(server.cancel())
        await until_deleted(caller, f"{queue}.{route}")
        await new.serve(queue, [route], slow)

        assert (await call).payload == b"done"
        await stopping


async def test_call_fails_once_two_probes_find_it_nowhere(caller: AmqpBus, unique: Unique) -> None:
    """At a single probe it can be on its way from one worker to another."""
    route, failed = unique("postbus.test.v1.Route"), list[str]()
    lost_calls, now = lost_calls_of(caller), time.monotonic()
    lost_calls.stop()
    lost_calls._publish = lambda *_: None
    lost_calls._sent_before = lambda _: [("held", route, now - 9), ("lost", route, now - 9)]
    lost_calls._fail = lambda id_, _error: failed.append(id_)
    answer = encode(ProbeAnswer(queue_age_ms=2000, held=["held"]))

    for expected in ([], ["lost"]):
        lost_calls._probe()
        lost_calls.stop()
        [id_] = lost_calls._probes
        lost_calls.on_answer(id_, answer)
        lost_calls.on_answer("an earlier probe", answer)
        assert failed == []
        await asyncio.sleep(0.15)
        assert failed == expected


async def test_call_that_was_sent_to_the_new_queue_does_not_fail(
    caller: AmqpBus, unique: Unique
) -> None:
    route, moments = unique("postbus.test.v1.Route"), list[float]()
    lost_calls, now = lost_calls_of(caller), time.monotonic()
    lost_calls.stop()

    def sent_before(moment: float) -> list[tuple[str, str, float]]:
        moments.append(moment)
        return []

    lost_calls._sent_before = sent_before
    lost_calls._probes = {"1": Probe(route, sent=now, oldest=now - 9)}

    lost_calls.on_answer("1", encode(ProbeAnswer(queue_age_ms=2000)))
    await asyncio.sleep(0.15)

    assert moments == [pytest.approx(now - 2)]


async def test_answer_to_a_probe_of_more_than_64_kib_is_ignored(
    caller: AmqpBus, unique: Unique
) -> None:
    lost_calls, route = lost_calls_of(caller), unique("postbus.test.v1.Route")
    lost_calls.stop()
    for length, held in ((2**16, set[str]()), (1000, {"x" * 1000})):
        probe = lost_calls._probes["1"] = a_probe(route)
        lost_calls.on_answer("1", encode(ProbeAnswer(held=["x" * length])))
        assert probe.held == held
