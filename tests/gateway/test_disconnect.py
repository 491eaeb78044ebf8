"""A client that leaves: its call ends, all the way to the handler."""

import asyncio
import gc
from typing import Any

from gateway.app import build_app
from postbus.bus.v1 import Reply
from shared.identity import TokenVerifier
from shared.messagebus.memory import MemoryBus
from shared.wire import encode

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


async def test_client_that_leaves_ends_its_call(verifier: TokenVerifier) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handler(_route: str, _body: bytes) -> bytes:
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
    async with asyncio.timeout(5):
        await app(SCOPE, receive, send)
        await ended.wait()

    assert sent == []


async def test_request_leaves_nothing_for_the_garbage_collector(verifier: TokenVerifier) -> None:
    """Else it would stop the process a few times a second, for longer than a request takes."""

    async def handler(_route: str, _body: bytes) -> bytes:
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
        left = gc.collect()
    finally:
        gc.enable()

    assert statuses == [200] * 101
    assert left < 100
