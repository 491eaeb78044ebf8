"""The gateway alone, with an in-memory bus and a worker with a configurable reply."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway.app import build_app
from gateway.gateway import Gateway
from gateway.http1 import ConnectionCounts, HttpLimits, http1
from gateway.websocket_protocol import WebSocketProtocol
from postbus.bus.v1 import Reply, Request
from postbus.registry import METHODS
from shared.bus.envelope import completed_reply
from shared.bus.memory import MemoryBus
from shared.identity import TokenVerifier
from shared.wire import decode, encode


class Worker:
    """Returns the same reply for every method, and records the requests."""

    def __init__(self) -> None:
        self.reply = Reply(payload=b"")
        self.failure: Exception | None = None
        self.requests: list[tuple[str, Request]] = []

    async def handle(self, route: str, body: bytes) -> bytes:
        self.requests.append((route, decode(Request, body)))
        return encode(self.reply)


class Socket:
    """A WebSocket client of a gateway."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, frame: dict[str, Any]) -> None:
        """Send a frame."""
        await self.connection.send(json.dumps(frame))

    async def request(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Send a frame; return the next one that is received."""
        await self.send(frame)
        return await self.frame()

    async def frame(self) -> dict[str, Any]:
        """Return the next frame that is received."""
        async with asyncio.timeout(5):
            frame: dict[str, Any] = json.loads(await self.connection.recv())
        return frame

    async def closed(self) -> tuple[int, str]:
        """Return code and reason of the gateway's close frame; frames before it are discarded."""
        async with asyncio.timeout(5):
            with suppress(ConnectionClosed):
                while True:
                    await self.connection.recv()
        assert self.connection.close_code is not None
        return self.connection.close_code, self.connection.close_reason or ""


@asynccontextmanager
async def listening(app: ASGIApp, **options: Any) -> AsyncIterator[int]:
    """Serve an application with the protocols of the gateway, in this event loop; yield the port.

    `options` are uvicorn's.
    """
    clients = ConnectionCounts(total=10_000, per_address=10_000)
    config = uvicorn.Config(
        app,
        http=http1(HttpLimits(), clients),
        ws=WebSocketProtocol,
        ws_per_message_deflate=False,
        log_config=None,
        **options,
    )
    async with serving(config) as port:
        yield port


@asynccontextmanager
async def serving(config: uvicorn.Config) -> AsyncIterator[int]:
    """Serve the application of a configuration in this event loop; yield the port."""
    config.load()
    state = ServerState()
    state.default_headers = config.encoded_headers

    def protocol() -> asyncio.Protocol:
        return config.http_protocol_class(config, state, {})  # type: ignore[call-arg]

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = await asyncio.get_running_loop().create_server(protocol, sock=listener)
        try:
            yield listener.getsockname()[1]
        finally:
            server.close()
            for connection in tuple(state.connections):
                connection.shutdown()
            await asyncio.gather(*state.tasks)


@asynccontextmanager
async def open_socket(app: ASGIApp, **options: Any) -> AsyncIterator[Socket]:
    """Serve an application and connect to its /ws."""
    async with (
        listening(app) as port,
        connect(f"ws://127.0.0.1:{port}/ws", **options) as connection,
    ):
        yield Socket(connection)


@pytest.fixture
def worker() -> Worker:
    return Worker()


async def empty_stream(_route: str, _body: bytes) -> AsyncGenerator[bytes, None]:
    """End a stream without a message."""
    yield completed_reply(1)


@pytest.fixture
async def bus(worker: Worker) -> MemoryBus:
    bus = MemoryBus()
    streams = [name for name, method in METHODS.items() if method.streams]
    await bus.serve("streams", streams, empty_stream)
    await bus.serve("everything", [each for each in METHODS if each not in streams], worker.handle)
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
