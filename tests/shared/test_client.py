"""Calls of generated stubs: repetition, nested budgets and operation ids, slots."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import pytest
from pydantic import SecretStr

from postbus.bus.v1 import Completed, Outcome, PingRequest, PingResponse, Reply, Request
from postbus.posts.v1 import (
    CreatePostRequest,
    GetPostRequest,
    PostDeleted,
    PostsServiceStub,
)
from postbus.reasons import REASONS
from postbus.registry import METHODS, Method
from shared.bus import Call, CallResult, MessageBus, ServiceChannel, call_method, publish
from shared.bus.amqp import connect
from shared.bus.memory import MemoryBus
from shared.context import Context
from shared.errors import ServiceError
from shared.trace import child_traceparent, new_traceparent, valid_traceparent
from shared.wire import decode, encode
from tests.buses import a_call, opened_bus
from tests.proxy import Proxy

Unique = Callable[[str], str]
SERVICE = "postbus.posts.v1.PostsService"
GET, LIKE, CREATE = (METHODS[f"{SERVICE}.{name}"] for name in ("GetPost", "LikePost", "CreatePost"))
"""A method without side effects, an idempotent one, and one of neither kind."""


class Breaking(MemoryBus):
    """A bus that fails its first calls, after sending them, with the given reasons."""

    def __init__(self, *reasons: str, always: str = "") -> None:
        super().__init__()
        self.sent: list[Call] = []
        self._reasons = list(reasons)
        self._always = always

    async def call(self, route: str, call: Call) -> CallResult:
        self.sent.append(call)
        reason = self._reasons.pop(0) if self._reasons else self._always
        if reason:
            raise ServiceError(REASONS[reason], "Broken.", outcome=Outcome.UNKNOWN)
        return CallResult(b"", replayed=False, caller_revision=0)


@pytest.fixture(params=["memory", "amqp"])
async def bus(request: pytest.FixtureRequest, vhost: str) -> AsyncIterator[MessageBus]:
    if request.param == "memory":
        yield MemoryBus()
        return
    async with opened_bus(vhost, "posts") as connected:
        yield connected


def a_context(seconds: float = 5) -> Context:
    return Context(
        name="outer",
        deadline=time.monotonic() + seconds,
        operation_id="outer operation",
        correlation_id="first operation",
        traceparent=new_traceparent(),
    )


async def failure(bus: MessageBus, method: Method, call: Call) -> ServiceError:
    async with asyncio.timeout(5):
        with pytest.raises(ServiceError) as raised:
            await call_method(bus, method, call)
    return raised.value


@pytest.mark.parametrize("method", [GET, LIKE, CREATE], ids=lambda each: each.name.split(".")[-1])
async def test_safe_and_idempotent_calls_are_repeated_when_the_connection_breaks(
    vhost: str, unique: Unique, method: Method
) -> None:
    route, received = unique("postbus.test.v1.Route"), list[str]()

    async with (
        Proxy.open(vhost) as proxy,
        opened_bus(vhost) as server,
        opened_bus(proxy.url) as client,
    ):

        async def break_first(_route: str, body: bytes, _service: str) -> bytes:
            received.append(decode(Request, body).operation_id)
            if len(received) == 1:
                proxy.break_()
            return encode(Reply(payload=b"done"))

        await server.serve(unique("queue."), [route], break_first)
        calling = call_method(client, method, a_call(), route)
        if method is CREATE:
            with pytest.raises(ServiceError) as raised:
                await calling
            assert (raised.value.reason, raised.value.outcome) == (
                "CONNECTION_LOST",
                Outcome.UNKNOWN,
            )
            assert len(received) == 1
        else:
            assert (await calling).payload == b"done"
            assert len(received) == 2
            assert len(set(received)) == 1  # the same operation


async def test_call_with_other_effects_is_sent_once() -> None:
    bus = Breaking(always="CONNECTION_LOST")

    error = await failure(bus, CREATE, a_call())

    assert (error.reason, error.outcome) == ("CONNECTION_LOST", Outcome.UNKNOWN)
    assert len(bus.sent) == 1


async def test_call_that_failed_otherwise_is_sent_once() -> None:
    bus = Breaking("NO_ROUTE")

    assert (await failure(bus, GET, a_call())).reason == "NO_ROUTE"
    assert len(bus.sent) == 1


async def test_call_is_repeated_for_a_second_at_most_with_growing_delays() -> None:
    """The delays are up to 50, 100, 200 and 400 ms."""
    bus = Breaking(always="CONNECTION_LOST")
    began = time.monotonic()

    error = await failure(bus, GET, a_call())

    assert error.reason == "CONNECTION_LOST"
    assert 2 < len(bus.sent) <= 5
    assert time.monotonic() - began < 1.2


async def test_call_is_not_repeated_beyond_its_budget() -> None:
    bus = Breaking(always="CONNECTION_LOST")

    await failure(bus, GET, a_call(seconds=0.1))

    assert len(bus.sent) == 2


async def test_repeated_call_waits_for_its_running_first_attempt() -> None:
    bus = Breaking("CONNECTION_LOST", "OPERATION_RUNNING")

    await call_method(bus, LIKE, a_call())

    assert len(bus.sent) == 3


async def test_nested_call_gets_at_most_the_remaining_budget_of_its_caller(
    bus: MessageBus, unique: Unique
) -> None:
    worker, budgets = unique("worker"), list[float]()

    async def record(_route: str, body: bytes, _service: str) -> bytes:
        budgets.append(decode(Request, body).budget_ms / 1000)
        return encode(Reply())

    server = await bus.serve(unique("queue."), [f"{GET.name}.{worker}"], record)
    stub = PostsServiceStub(ServiceChannel(bus, worker=worker))
    short, long = a_context(2), a_context(50)
    for context in (short, long):
        with context:
            await stub.get_post(GetPostRequest(id="1"))

    assert 1.5 < budgets[0] <= 2
    assert GET.timeout - 1 < budgets[1] <= GET.timeout < long.remaining
    await server.cancel()


async def test_nested_call_without_remaining_budget_is_not_sent() -> None:
    bus, context = Breaking(), a_context()

    with context:
        context.deadline = time.monotonic() - 0.001
        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
            await PostsServiceStub(ServiceChannel(bus)).get_post(GetPostRequest(id="1"))

    assert bus.sent == []


async def test_nested_calls_have_operation_ids_that_a_repetition_repeats() -> None:
    bus, context = Breaking(), a_context()
    stub = PostsServiceStub(ServiceChannel(bus))

    with context:
        for _ in range(2):
            context.restart(late=False)
            await stub.create_post(CreatePostRequest(title="one"))
            await stub.create_post(CreatePostRequest(title="two"))

    sent = [decode(Request, each.request) for each in bus.sent]
    ids = [each.operation_id for each in sent]
    assert ids[:2] == ids[2:]
    assert ids[0] != ids[1]
    assert {each.correlation_id for each in sent} == {"first operation"}


async def test_call_without_an_operation_id_gets_a_new_one() -> None:
    bus = Breaking()
    stub = PostsServiceStub(ServiceChannel(bus))

    for _ in range(2):
        await stub.get_post(GetPostRequest(id="1"))

    assert len({decode(Request, each.request).operation_id for each in bus.sent} - {""}) == 2


@pytest.mark.parametrize("invalid", ["", "x" * 1_000_000, f"00-{'0' * 32}-{'1' * 16}-01", "00-A-1"])
def test_traceparent_of_a_call_is_valid(invalid: str) -> None:
    parent = new_traceparent()
    child = child_traceparent(parent)

    assert valid_traceparent(parent) == parent
    assert child[:36] == parent[:36]
    assert child != parent
    for made in (valid_traceparent(invalid), child_traceparent(invalid)):
        assert len(made) == 55
        assert valid_traceparent(made) == made


async def test_handlers_that_call_their_own_service_do_not_deadlock(
    vhost: str, unique: Unique
) -> None:
    worker = unique("worker")
    outer, inner = unique("postbus.posts.v1.Route"), f"{GET.name}.{worker}"
    async with connect(SecretStr(vhost), "posts") as bus:
        stub = PostsServiceStub(ServiceChannel(bus, worker=worker))

        async def handle(route: str, _body: bytes, _service: str) -> bytes:
            if route == outer:
                await stub.get_post(GetPostRequest(id="1"))
            return encode(Reply())

        server = await bus.serve(unique("queue."), [outer, inner], handle, concurrency=1)
        await bus.call(outer, a_call(seconds=3))
        await server.cancel()


async def test_handlers_that_read_a_stream_of_their_own_service_do_not_deadlock(
    vhost: str, unique: Unique
) -> None:
    worker, ping = unique("worker"), METHODS["postbus.bus.v1.WorkerService.Ping"]
    outer, inner = f"postbus.{worker}.v1.Route", f"{ping.name}.{worker}"
    async with connect(SecretStr(vhost), worker) as bus:
        channel, numbers = ServiceChannel(bus, worker=worker), list[int]()

        async def replies() -> AsyncGenerator[bytes, None]:
            for number in range(1, 4):
                yield encode(Reply(payload=encode(PingResponse()), sequence=number))
            yield encode(Reply(completed=Completed(), sequence=4))

        async def read() -> bytes:
            async for _ in channel.stream(ping.route, PingRequest(), PingResponse, 3):
                numbers.append(len(numbers))
            return encode(Reply())

        server = await bus.serve(
            unique("queue."),
            [outer, inner],
            lambda route, _body, _service: read() if route == outer else replies(),
            concurrency=1,
        )
        await bus.call(outer, a_call(seconds=5))
        assert numbers == [0, 1, 2]
        await server.cancel()


async def test_event_outside_a_unit_of_work_is_refused() -> None:
    with pytest.raises(RuntimeError, match="handlers of methods with side effects"):
        await publish(PostDeleted(post_id="1"))
    with a_context(), pytest.raises(RuntimeError, match="with side effects"):
        await publish(PostDeleted(post_id="1"))
