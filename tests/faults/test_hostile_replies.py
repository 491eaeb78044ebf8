"""A compromised service that replies with too much harms only the calls to itself."""

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog.testing

from gateway.app import build_app
from postbus.bus.v1 import Error, Reply
from postbus.posts.v1 import GetPostResponse, Post
from shared.access_tokens import TokenVerifier
from shared.bus.amqp import AmqpBus
from shared.bus.amqp.message_properties import properties
from shared.bus.amqp.rpc_server import RpcServer
from shared.errors import ServiceError
from shared.wire import encode
from tests.buses import a_call, opened_bus
from tests.conftest import new_vhost

Unique = Callable[[str], str]

MIB = 2**20
LIST, GET = "postbus.posts.v1.PostsService.ListPosts", "postbus.posts.v1.PostsService.GetPost"
HONEST = encode(Reply(payload=encode(GetPostResponse(post=Post(id="honest")))))
FAILED = encode(Reply(error=Error(reason="X")))
MILLIONS = 4 * MIB
REPLIES: dict[str, Callable[[], bytes]] = {
    "no reply": lambda: b"\xff" * (15 * MIB),
    "bytes that are no response": lambda: encode(Reply(payload=b"\xff" * (15 * MIB))),
    "millions of posts": lambda: encode(Reply(payload=b"\x0a\x00" * MILLIONS)),
    "millions of header fields": lambda: b"\x4a\x00" * MILLIONS,
    "millions of violations": lambda: FAILED + b"\x12\x02\x22\x00" * (MILLIONS // 2),
    "millions of details": lambda: FAILED + b"\x12\x02\x4a\x00" * (MILLIONS // 2),
    "an error of 15 MiB": lambda: encode(
        Reply(error=Error(reason="X" * MIB, message="x" * 14 * MIB))
    ),
    "30 MiB": lambda: encode(Reply(payload=bytes(30 * MIB))),
}


def resident() -> float:
    """Return the memory of this process in MiB."""
    field = Path("/proc/self/status").read_text().partition("VmRSS:")[2]
    return int(field.split()[0]) / 1024


@pytest.fixture(scope="module")
async def hostile_vhost(run_id: str) -> AsyncIterator[str]:
    async with new_vhost(f"{run_id}_hostile") as url:
        yield url


@pytest.fixture
async def posts(hostile_vhost: str) -> AsyncIterator[AmqpBus]:
    """The bus of the compromised service."""
    async with opened_bus(hostile_vhost, "posts") as bus:
        yield bus


@pytest.fixture
async def gateway(
    hostile_vhost: str, posts: AmqpBus, verifier: TokenVerifier
) -> AsyncIterator[httpx.AsyncClient]:
    async with opened_bus(hostile_vhost, "gateway", keep_events=True) as bus:
        app = build_app(bus, verifier, max_body_bytes=10_000)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.running(),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            yield client


@pytest.mark.parametrize("kind", REPLIES)
async def test_reply_of_16_mebibytes_is_an_error_of_its_call_in_bounded_time_and_memory(
    kind: str, posts: AmqpBus, gateway: httpx.AsyncClient
) -> None:
    reply = REPLIES[kind]()

    async def answer(route: str, _body: bytes, _service: str) -> bytes:
        return reply if route == LIST else HONEST

    server = await posts.serve("posts", [LIST, GET], answer)
    await gateway.get("/v1/posts/x")  # opens channels
    gc.collect()
    before, cpu, began = resident(), time.process_time(), time.monotonic()

    hostile, honest = await asyncio.gather(
        gateway.get("/v1/posts", headers={"Request-Timeout": "4"}), gateway.get("/v1/posts/x")
    )

    spent, seconds, grown = (
        time.process_time() - cpu,
        time.monotonic() - began,
        resident() - before,
    )
    assert (honest.status_code, honest.json()["id"]) == (200, "honest")
    assert hostile.is_error, hostile.text
    assert set(hostile.json()) >= {"reason", "status", "traceId"}
    assert len(hostile.content) < 64 * 2**10
    assert (spent < 0.7, grown < 128, seconds < 4.5) == (True, True, True), (spent, grown, seconds)
    await server.cancel()


async def test_ten_thousand_replies_to_one_call_are_ignored(
    posts: AmqpBus, gateway: httpx.AsyncClient
) -> None:
    """They are counted as a second queue of the method, in one log line."""
    replied = asyncio.Event()

    async def answer(route: str, _body: bytes, _service: str) -> bytes:
        return HONEST

    server = await posts.serve("posts", [GET], answer)
    session = posts._session
    assert session is not None
    [rpc_server] = posts._consumers
    assert isinstance(rpc_server, RpcServer)
    sender = rpc_server._execution.sender
    original = sender.send

    def send_often(channel: Any, message: Any, reply: bytes) -> None:
        for _ in range(10_000):
            original(channel, message, reply)
        replied.set()

    sender.send = send_often  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as lines:
        responses = [await gateway.get("/v1/posts/x") for _ in range(3)]

    assert [each.status_code for each in responses] == [200, 200, 200]
    assert len(lines) <= 2, lines
    assert replied.is_set()
    await server.cancel()


@pytest.mark.parametrize(
    ("count", "size"), [(31, 2 * MIB), (10_000, 100)], ids=["62 MiB", "10,000 replies"]
)
async def test_replies_of_a_stream_that_wait_are_bounded(
    count: int, size: int, hostile_vhost: str, posts: AmqpBus, unique: Unique
) -> None:
    """A worker that ignores the credit, or uses all of it for large replies."""
    route, sent = unique("postbus.posts.v1.Route"), asyncio.Event()

    async def answer(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        yield encode(Reply(payload=bytes(size), sequence=1))
        await sent.wait()

    server = await posts.serve("posts", [route], answer)
    async with (
        opened_bus(hostile_vhost, "gateway") as caller,
        aclosing(caller.stream(route, a_call(seconds=10))) as replies,
    ):
        assert len(await anext(replies)) == size
        assert caller._session is not None
        assert posts._session is not None
        rpc = caller._session.rpc
        [(correlation_id, stream)] = rpc._pending.streams.items()
        channel = await posts._session.publishers.open("postbus.replies.gateway")
        header = properties("", correlation_id=correlation_id, user_id="posts")
        for sequence in range(2, count + 2):
            body = encode(Reply(payload=bytes(size), sequence=sequence))
            channel.publish(channel.exchange, rpc._reply_to, header, body)
        async with asyncio.timeout(10):
            while not stream._broken:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)
        waiting: list[Any] = list(stream._replies._queue)  # type: ignore[attr-defined]  # the deque
        assert sum(len(each.body) for each in waiting[:-1]) <= 32 * MIB
        assert len(waiting) <= 33

        async def take() -> None:
            async for _ in replies:
                pass

        with pytest.raises(ServiceError, match="STREAM_BROKEN"):
            await take()
    sent.set()
    await server.cancel()


async def test_stream_without_an_end_is_cancelled_at_its_deadline(
    hostile_vhost: str, posts: AmqpBus, unique: Unique
) -> None:
    route, ended = unique("postbus.posts.v1.Route"), asyncio.Event()

    async def answer(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        sequence = 0
        try:
            while True:
                sequence += 1
                yield encode(Reply(payload=b"more", sequence=sequence))
        finally:
            ended.set()

    server = await posts.serve("posts", [route], answer)
    async with opened_bus(hostile_vhost, "gateway") as caller:
        taken = 0

        async def take() -> None:
            nonlocal taken
            async for _ in caller.stream(route, a_call(seconds=0.5)):
                taken += 1

        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
            await take()
        assert taken > 32
        async with asyncio.timeout(5):
            await ended.wait()
    await server.cancel()
