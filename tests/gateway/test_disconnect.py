"""Disconnects: the call of the client is cancelled, and its handler too."""

import asyncio
import gc
import itertools
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect
from structlog.testing import capture_logs

from gateway.app import build_app
from gateway.disconnect import cancelled_by_disconnect
from gateway.gateway import Gateway
from gateway.request_body import read_body
from gateway.streaming import StreamResponse
from postbus.bus.v1 import Reply
from shared.access_tokens import TokenVerifier
from shared.bus import Call, CallResult
from shared.bus.memory import MemoryBus
from shared.errors import ServiceError
from shared.wire import encode
from tests.gateway.listening import listening
from tests.tokens import TokenMaker

POST_ID = "018f3f6e-0000-7000-8000-000000000001"

SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/v1/posts",
    "raw_path": b"/v1/posts",
    "query_string": b"",
    "headers": [],
    "client": ("127.0.0.1", 1),
    "server": ("gateway", 80),
}


async def test_disconnect_cancels_the_call(verifier: TokenVerifier) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handler(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    async def receive() -> dict[str, Any]:
        if not begun.is_set():
            await begun.wait()
        return {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    bus = MemoryBus()
    await bus.serve("posts", ["postbus.posts.v1.PostsService.ListPosts"], handler)
    app = build_app(bus, verifier, max_body_bytes=10_000)
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(5):
        await app(SCOPE, receive, send)
        await ended.wait()

    assert sent == []
    assert asyncio.get_running_loop().time() - began < 4  # else the time above cancelled the call


@pytest.mark.parametrize("line", ["GET /v1/posts", f"DELETE /v1/posts/{POST_ID}"])
async def test_disconnect_of_a_connection_cancels_the_call(
    verifier: TokenVerifier, tokens: TokenMaker, line: str
) -> None:
    """A change with If-None-Match reads the resource first."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b""

    bus = MemoryBus()
    posts = "postbus.posts.v1.PostsService"
    await bus.serve("posts", [f"{posts}.ListPosts", f"{posts}.GetPost"], handler)
    app = build_app(bus, verifier, max_body_bytes=10_000)
    async with (
        app.running(),
        listening(app) as port,
        asyncio.timeout(4),  # less than the timeout of the call
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        fields = f'Authorization: Bearer {tokens.token("alice")}\r\nIf-None-Match: "x"\r\n'
        head = f"{line} HTTP/1.1\r\nHost: a\r\nRequest-Timeout: 20\r\n{fields}\r\n"
        writer.write(head.encode())
        await begun.wait()
        writer.close()
        await cancelled.wait()


async def test_rest_of_a_body_is_no_disconnect() -> None:
    events = [{"type": "http.request", "body": b"", "more_body": False}]
    waiting = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if events:
            return events.pop()
        waiting.set()
        await asyncio.Event().wait()
        return {}

    with cancelled_by_disconnect(receive, after=0):
        async with asyncio.timeout(2):
            await waiting.wait()


async def test_watcher_of_a_client_ends_with_the_work_and_leaves_no_garbage() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def work() -> None:
        with cancelled_by_disconnect(receive, after=0):
            for _ in range(3):
                await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)

    before = asyncio.all_tasks()
    await work()
    assert asyncio.all_tasks() == before

    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            await work()
        unreachable = gc.collect()
    finally:
        gc.enable()
    assert unreachable < 50


async def test_gateway_stops_while_the_broker_is_unreachable(
    verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_arguments: object, **_options: object) -> None:
        await asyncio.Event().wait()

    bus = MemoryBus()
    monkeypatch.setattr(bus, "subscribe", never)
    app = build_app(bus, verifier, max_body_bytes=10_000)

    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(3), app.running():
        pass
    assert asyncio.get_running_loop().time() - began < 2


async def test_request_creates_no_garbage_cycles(verifier: TokenVerifier) -> None:
    """The collector would stop the process several times a second, longer than a request."""

    async def handler(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=b""))

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    bus = MemoryBus()
    await bus.serve("posts", ["postbus.posts.v1.PostsService.ListPosts"], handler)
    app = build_app(bus, verifier, max_body_bytes=10_000)
    await app(dict(SCOPE), receive, send)
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            await app(dict(SCOPE), receive, send)
        unreachable = gc.collect()
    finally:
        gc.enable()

    assert statuses == [200] * 101
    assert unreachable < 100


async def test_short_call_is_not_watched(verifier: TokenVerifier) -> None:
    """The task that watches a client costs more than the rest of the endpoint."""

    async def handler(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=b""))

    received = 0

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        await asyncio.Event().wait()
        return {}

    async def send(_message: Any) -> None:
        pass

    bus = MemoryBus()
    await bus.serve("posts", ["postbus.posts.v1.PostsService.ListPosts"], handler)
    app = build_app(bus, verifier, max_body_bytes=10_000)
    await app(dict(SCOPE), receive, send)

    assert received == 0


def stream_of(payloads: AsyncGenerator[bytes, None]) -> StreamResponse:
    """Return a stream with one part per payload."""

    async def encode(payload: bytes) -> bytes:
        return payload

    def failure(error: Exception) -> ServiceError:
        raise error

    return StreamResponse(payloads, encode=encode, failure=failure, end=lambda _: b"")


async def test_disconnect_during_a_stream_cancels_it() -> None:
    disconnect, ended = asyncio.Event(), asyncio.Event()

    async def payloads() -> AsyncGenerator[bytes, None]:
        try:
            for number in itertools.count():
                yield b"%d" % number
                if number == 3:
                    disconnect.set()
                    await asyncio.Event().wait()
        finally:
            ended.set()

    async def receive() -> dict[str, Any]:
        await disconnect.wait()
        return {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    response = stream_of(payloads())
    await response.begin(receive)
    with pytest.raises(ClientDisconnect):
        async with asyncio.timeout(5):
            await response.send(receive, send)

    assert ended.is_set()
    assert [message["body"] for message in sent[1:]] == [b"0", b"1", b"2", b"3"]


async def test_disconnect_before_the_first_message_cancels_the_stream() -> None:
    ended = asyncio.Event()

    async def payloads() -> AsyncGenerator[bytes, None]:
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            ended.set()

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        async with asyncio.timeout(5):
            await stream_of(payloads()).begin(receive)

    assert ended.is_set()


async def test_stream_ends_at_once_if_its_response_cannot_be_sent() -> None:
    ended = asyncio.Event()

    async def payloads() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b""
        finally:
            ended.set()

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def send(_message: Any) -> None:
        raise OSError

    response = stream_of(payloads())
    await response.begin(receive)
    with pytest.raises(OSError):  # noqa: PT011  # the one above
        await response.send(receive, send)

    assert ended.is_set()


async def test_disconnect_before_the_end_of_a_body_is_no_shorter_body() -> None:
    events: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return events.pop(0)

    with pytest.raises(ClientDisconnect):
        await read_body(receive, max_bytes=100)


async def test_call_that_is_cancelled_by_the_server_shutdown_is_a_503(
    verifier: TokenVerifier,
) -> None:
    begun = asyncio.Event()

    async def handler(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        await asyncio.Event().wait()
        return b""

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    bus = MemoryBus()
    await bus.serve("posts", ["postbus.posts.v1.PostsService.ListPosts"], handler)
    app = build_app(bus, verifier, max_body_bytes=10_000)
    with capture_logs() as logs:
        serving = asyncio.create_task(app(dict(SCOPE), receive, send))
        await begun.wait()
        serving.cancel()
        await serving

    assert sent[0]["status"] == 503
    assert b'"reason":"SERVER_STOPPED"' in sent[1]["body"]
    assert b'"outcome":"UNKNOWN"' in sent[1]["body"]
    assert logs == []


async def test_request_that_the_server_shutdown_ends_before_its_call_has_no_effect(
    app: Gateway, tokens: TokenMaker
) -> None:
    awaited = asyncio.Event()

    async def receive() -> dict[str, Any]:
        awaited.set()
        await asyncio.Event().wait()
        return {}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    fields = [
        (b"authorization", f"Bearer {tokens.token('alice')}".encode()),
        (b"content-type", b"application/json"),
        (b"content-length", b"10"),
    ]
    scope = SCOPE | {"method": "POST", "headers": fields}
    serving = asyncio.create_task(app(scope, receive, send))
    async with asyncio.timeout(5):
        await awaited.wait()
        serving.cancel()
        await serving

    assert sent[0]["status"] == 503
    problem = json.loads(sent[1]["body"])
    assert (problem["reason"], problem["outcome"]) == ("SERVER_STOPPED", "NO_EFFECT")


async def test_request_that_fails_unexpectedly_before_its_call_has_no_effect(
    app: Gateway, tokens: TokenMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RecursionError

    monkeypatch.setattr("gateway.json_bodies.read_json", fail)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        with capture_logs() as logs:
            response = await client.post(
                "/v1/posts",
                json={},
                headers={"Authorization": f"Bearer {tokens.token('alice')}"},
            )

    assert (response.status_code, response.json()["outcome"]) == (500, "NO_EFFECT")
    assert [each["event"] for each in logs] == ["request.failed"]


@pytest.mark.parametrize("path", ["/v1/posts", "/docs/swagger-ui-bundle.js", "/v1/none"])
@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("the handler is closed")])
async def test_disconnect_during_the_response_is_not_logged_as_a_failure(
    verifier: TokenVerifier, path: str, error: Exception
) -> None:
    async def handler(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=b""))

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        raise error

    bus = MemoryBus()
    await bus.serve("posts", ["postbus.posts.v1.PostsService.ListPosts"], handler)
    app = build_app(bus, verifier, max_body_bytes=10_000)
    with capture_logs() as logs:
        await app(dict(SCOPE) | {"path": path, "raw_path": path.encode()}, receive, send)

    assert [each for each in logs if each["log_level"] != "debug"] == []


async def test_unexpected_failure_is_one_line_of_the_log(verifier: TokenVerifier) -> None:
    class Bus(MemoryBus):
        async def call(self, route: str, call: Call) -> CallResult:
            raise KeyError(route)

    transport = httpx.ASGITransport(build_app(Bus(), verifier, max_body_bytes=10_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        with capture_logs() as logs:
            responses = [await client.get("/v1/posts") for _ in range(2)]

    assert [each.status_code for each in responses] == [500, 500]
    assert [each["event"] for each in logs] == ["request.failed"] * 2
    assert logs[0]["trace_id"] == responses[0].headers["trace-id"]
    assert "connection" not in responses[0].headers
