"""Messages by which a compromised service tries to harm another one."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from pamqp import encode as amqp

from gateway.health import Health
from gateway.worker_metrics import WorkerMetrics
from postbus.bus.v1 import (
    Batch,
    CheckResponse,
    Code,
    Error,
    Event,
    GetStatisticsResponse,
    HandlerStatistics,
    Histogram,
    Instance,
    Outcome,
    Part,
    Reply,
)
from shared.access_tokens import TokenVerifier
from shared.bus.amqp import AmqpBus, reply_receiver
from shared.bus.amqp.event_senders import event_owner
from shared.bus.amqp.received_messages import Delivered
from shared.bus.memory import MemoryBus
from shared.bus.reply import result_of
from shared.errors import ServiceError
from shared.runtime.session_verifier import SessionVerifier
from shared.security_log import SecurityEvent
from shared.wire import decode, encode
from tests.buses import a_call, opened_bus
from tests.messages import CALLS, CONTROL, message

Unique = Callable[[str], str]


@pytest.fixture
async def bus(vhost: str) -> AsyncIterator[AmqpBus]:
    async with opened_bus(vhost) as opened:
        yield opened


@pytest.fixture
async def channel(vhost: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(vhost) as connection:
        yield await connection.channel()


async def test_event_that_claims_an_old_delay_queue_is_not_believed(
    vhost: str, bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    """Events of the old delay queues have no sender; any service can set their header."""
    own, foreign = unique("postbus.neighbour.v1.Event"), unique("postbus.owner.v1.Event")
    handled = asyncio.Queue[str]()

    async def keep(body: bytes) -> None:
        handled.put_nowait(decode(Event, body).id)

    async with opened_bus(vhost, "owner"), opened_bus(vhost, "neighbour") as neighbour:
        by_all = await bus.subscribe([own, foreign], keep)
        named = await bus.subscribe([own, foreign], keep, queue=unique("queue."))
        exchange = await channel.get_exchange("postbus.events.neighbour")
        body = encode(Event(id="forged", type=foreign))
        old = {"x-first-death-queue": "postbus.delay.5"}
        await exchange.publish(aio_pika.Message(body, headers=dict(old)), own)
        await neighbour.publish(Event(id="genuine", type=own))

        async with asyncio.timeout(5):
            assert [await handled.get() for _ in range(2)] == ["genuine"] * 2
            while bus.security_log.counts[SecurityEvent.SENDER_REFUSED] < 2:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)
        assert handled.empty()
        await asyncio.gather(by_all.cancel(), named.cancel())


async def dead_letter(
    channel: AbstractChannel, letter: aio_pika.Message, exchange: str, key: str
) -> None:
    """Let a queue pass a message on to an exchange, as its owner chooses; wait until it has."""
    arguments: dict[str, str | int] = {
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-routing-key": key,
        "x-message-ttl": 0,
    }
    queue = await channel.declare_queue(exclusive=True, arguments=dict(arguments))
    await channel.default_exchange.publish(letter, queue.name)


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batch"])
async def test_call_that_a_queue_passes_on_is_not_that_of_its_sender(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique, batched: bool
) -> None:
    """A service could pass the calls that it gets on to another one, as any of its methods."""
    route, callers = unique("postbus.test.v1.Route"), list[str]()

    async def answer(_route: str, _body: bytes, service: str) -> bytes:
        callers.append(service)
        return encode(Reply())

    server = await bus.serve(unique("queue."), [route], answer)
    await bus.call(route, a_call())
    reply_to = bus._session.rpc._reply_to if bus._session else ""
    body = a_call().request
    if batched:
        body = encode(Batch(correlation_ids=["1"], messages=[body]))
    sent = message(body, reply_to=reply_to, correlation_id="1")
    await dead_letter(channel, sent, CALLS, f"{route}/batch" if batched else route)
    async with asyncio.timeout(5):
        while not bus.security_log.counts[SecurityEvent.SENDER_REFUSED]:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)
    await bus.call(route, a_call())

    assert callers == ["test"] * 2
    await server.cancel()


async def test_event_that_a_queue_passes_on_is_not_genuine(
    vhost: str, bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    """A consumer of an event could repeat it later."""
    type_, handled = unique("postbus.owner.v1.Event"), asyncio.Queue[str]()

    async def keep(body: bytes) -> None:
        handled.put_nowait(decode(Event, body).id)

    async with opened_bus(vhost, "owner") as owner:
        subscription = await bus.subscribe([type_], keep)
        repeated = message(encode(Event(id="repeated", type=type_)), "owner")
        await dead_letter(channel, repeated, "postbus.events.owner", type_)
        async with asyncio.timeout(5):
            while not bus.security_log.counts[SecurityEvent.SENDER_REFUSED]:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)
        await owner.publish(Event(id="genuine", type=type_))

        assert await handled.get() == "genuine"
        await subscription.cancel()


@pytest.mark.parametrize("type_", ["x" * 10**6, "postbus.users." + "x" * 10**6])
def test_owner_of_a_long_type_is_short_because_it_is_kept(type_: str) -> None:
    delivered = Delivered(1, "postbus.users.v1.Event", "", "", b"", encode(Event(type=type_)))

    assert len(event_owner(delivered)) <= 255


@pytest.mark.usefixtures("frozen_heap")
@pytest.mark.parametrize("count", [30_000, 500])
def test_headers_that_take_long_to_parse_are_ignored(count: int) -> None:
    entries = b"".join(b"\1%cV" % (97 + number % 26) for number in range(count))
    table = struct.pack(">I", len(entries)) + entries + amqp.field_table({"x": 1})[4:]
    delivered = Delivered(1, "", "", "", table, b"")

    began = time.process_time()
    headers = delivered.headers

    assert len(headers) == (0 if count == 30_000 else 26)
    assert time.process_time() - began < 0.02


async def test_replies_to_a_broadcast_are_bounded_in_number_and_size(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (reply_receiver._MAX_SHARED_REPLIES, reply_receiver._MAX_SHARED_REPLY) == (128, 2**18)
    route, queue = f"postbus.bus.v1.{unique('Route')}.test", await channel.declare_queue()
    await queue.bind(CONTROL, route)
    replies = await channel.get_exchange("postbus.replies.test")
    broadcasting = asyncio.create_task(bus.broadcast(route, a_call(seconds=1)))
    session = bus._session
    assert session is not None
    while not session.rpc._pending.broadcasts:  # noqa: ASYNC110  # polls
        await asyncio.sleep(0.01)
    [id_] = session.rpc._pending.broadcasts
    for size in (2**18, *[1] * 150):
        reply = message(encode(Reply(payload=bytes(size))), correlation_id=id_)
        await replies.publish(reply, session.rpc._reply_to)

    assert [len(each) for each in await broadcasting] == [1] * 128


def _statistics(**values: object) -> bytes:
    response = GetStatisticsResponse(instance=Instance(worker="users", id="1"), bounds=[1.0])
    counts = Histogram(counts=[1, 2], sum=1.0)
    handler = HandlerStatistics(name="h", duration=counts, wait=counts)
    for name, value in values.items():
        setattr(handler, name, value)
    response.handlers = [handler]
    return encode(response)


async def test_statistics_of_a_worker_count_for_itself_and_only_if_they_are_consistent() -> None:
    bus, route = MemoryBus(), "postbus.bus.v1.WorkerService.GetStatistics.posts"
    responses = [
        _statistics(duration=Histogram(counts=[1] * 9)),
        _statistics(wait=Histogram()),
        b"\xff",
        _statistics(name="good"),
        _statistics(name="again"),
    ]

    def answering(response: bytes) -> Callable[..., object]:
        async def answer(_route: str, _body: bytes, _service: str) -> bytes:
            return encode(Reply(payload=response))

        return answer

    for response in responses:
        await bus.serve("posts", [route], answering(response))  # type: ignore[arg-type]  # a handler

    families = list((await WorkerMetrics(bus, {}).collect()).collect())
    labels = [sample.labels for family in families for sample in family.samples]

    assert {each["worker"] for each in labels} == {"posts"}
    assert {each.get("handler", "good") for each in labels} == {"good"}


async def test_handlers_in_the_statistics_of_a_worker_are_bounded() -> None:
    bus, route = MemoryBus(), "postbus.bus.v1.WorkerService.GetStatistics.posts"
    counts = Histogram(counts=[1], sum=1.0)
    many = [HandlerStatistics(name=f"h{n}", duration=counts, wait=counts) for n in range(20)]
    many += [HandlerStatistics(name=f"h{n}") for n in range(20, 5001)]
    for number, handlers in enumerate((many[:10], many, many[10:20])):
        response = GetStatisticsResponse(instance=Instance(id=f"{number}"), handlers=handlers)

        async def answer(_route: str, _body: bytes, _service: str, response: bytes) -> bytes:
            return encode(Reply(payload=response))

        await bus.serve("posts", [route], partial(answer, response=encode(response)))

    families = list((await WorkerMetrics(bus, {}).collect()).collect())

    instances = {sample.labels["instance"] for family in families for sample in family.samples}
    assert instances == {"0"}


@pytest.mark.parametrize(("parts", "shown"), [(60, 51), (70_000, 1)])
async def test_parts_of_a_worker_are_bounded(
    sessions: SessionVerifier, parts: int, shown: int
) -> None:
    bus = MemoryBus()

    async def answer(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=encode(CheckResponse(parts=[Part()] * parts))))

    await bus.serve("posts", ["postbus.bus.v1.HealthService.Check.posts"], answer)

    found = await Health(bus, sessions).parts()

    names = [part.name for part in found if part.name.startswith("posts")]
    assert len(names) == shown
    assert {part.name: part.ready for part in found}["posts"] is (parts == 60)


@pytest.fixture
async def sessions(verifier: TokenVerifier) -> SessionVerifier:
    return SessionVerifier(MemoryBus(), verifier)


@pytest.mark.parametrize(
    ("code", "outcome", "expected"),
    [
        (77, 0, (Code.UNKNOWN, Outcome.UNSPECIFIED)),
        (0, 1, (Code.UNKNOWN, Outcome.NO_EFFECT)),
        (-1, 9, (Code.UNKNOWN, Outcome.UNKNOWN)),
        (10, 1, (Code.ABORTED, Outcome.NO_EFFECT)),
    ],
)
def test_unknown_numbers_of_an_error_are_named_unknown(
    code: int, outcome: int, expected: tuple[Code, Outcome]
) -> None:
    error = Error(code=Code.try_value(code), outcome=Outcome.try_value(outcome))
    error.reason, error.trace_id = "R" * 10**6, "t" * 10**6

    with pytest.raises(ServiceError) as raised:
        result_of(encode(Reply(error=error)))

    assert (raised.value.code, raised.value.outcome) == expected
    assert raised.value.code.name == expected[0].name
    assert (len(raised.value.reason), len(raised.value.trace_id)) == (500, 500)
