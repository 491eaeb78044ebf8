"""The gateway alone: the bus in memory, with a worker that answers what a test wants."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.types import Message

from gateway.app import build_app
from gateway.gateway import Gateway
from postbus.bus.v1 import Reply, Request
from postbus.registry import METHODS
from shared.identity import TokenVerifier
from shared.messagebus.memory import MemoryBus
from shared.wire import decode, encode


class Worker:
    """Answers every method with the same reply, and remembers what it was asked."""

    def __init__(self) -> None:
        self.reply = Reply(payload=b"")
        self.failure: Exception | None = None
        self.requests: list[tuple[str, Request]] = []

    async def handle(self, route: str, body: bytes) -> bytes:
        self.requests.append((route, decode(Request, body)))
        return encode(self.reply)


class Socket:
    """A WebSocket client of an application, without a network."""

    def __init__(self) -> None:
        self.to_application: asyncio.Queue[Message] = asyncio.Queue()
        self.from_application: asyncio.Queue[Message] = asyncio.Queue()

    async def ask(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Send a frame; return the next that comes."""
        message = {"type": "websocket.receive", "text": json.dumps(frame)}
        self.to_application.put_nowait(message)
        return await self.frame()

    async def frame(self) -> dict[str, Any]:
        """Return the next frame that comes."""
        frame: dict[str, Any] = json.loads((await self.next("websocket.send"))["text"])
        return frame

    async def end(self) -> tuple[int, str]:
        """Return code and reason with which the application closes."""
        message = await self.next("websocket.close")
        return message["code"], message["reason"]

    async def next(self, kind: str) -> Message:
        """Return the next message of the application, which is of this kind."""
        async with asyncio.timeout(5):
            message = await self.from_application.get()
        assert message["type"] == kind, message
        return message


@asynccontextmanager
async def open_socket(app: Gateway) -> AsyncIterator[Socket]:
    """Connect to /ws."""
    socket = Socket()
    scope = {"type": "websocket", "path": "/ws", "headers": [], "query_string": b""}
    receive, send = socket.to_application.get, socket.from_application.put
    async with asyncio.TaskGroup() as serving:
        serving.create_task(app(scope, receive, send))
        socket.to_application.put_nowait({"type": "websocket.connect"})
        await socket.next("websocket.accept")
        yield socket
        socket.to_application.put_nowait({"type": "websocket.disconnect", "code": 1000})


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
async def bus(worker: Worker) -> MemoryBus:
    bus = MemoryBus()
    await bus.serve("everything", list(METHODS), worker.handle)
    return bus


@pytest.fixture
async def app(bus: MemoryBus, verifier: TokenVerifier) -> AsyncIterator[Gateway]:
    app = build_app(bus, verifier, max_body_bytes=10_000)
    async with app.running():
        yield app


@pytest.fixture
async def gateway(app: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client
