"""The gateway alone, with an in-memory bus and a worker with a configurable reply."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest

from gateway.app import build_app
from gateway.gateway import Gateway
from postbus.bus.v1 import Reply, Request
from postbus.registry import METHODS
from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus
from shared.bus.reply import completed_reply
from shared.wire import decode, encode
from tests.gateway import websocket_server
from tests.gateway.http1_server import Server, serve
from tests.tokens import TokenMaker


class Worker:
    """Returns the same reply for every method, and records the requests."""

    def __init__(self) -> None:
        self.reply = Reply(payload=b"")
        self.failure: Exception | None = None
        self.requests: list[tuple[str, Request]] = []

    async def handle(self, route: str, body: bytes, _service: str) -> bytes:
        self.requests.append((route, decode(Request, body)))
        return encode(self.reply)


@pytest.fixture
def worker() -> Worker:
    return Worker()


async def empty_stream(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
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


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


@pytest.fixture
async def make(
    bus: MemoryBus, verifier: TokenVerifier, tokens: TokenMaker
) -> AsyncIterator[websocket_server.Make]:
    async with AsyncExitStack() as stack:
        yield websocket_server.Make(bus, verifier, tokens, stack)


@pytest.fixture
async def here(make: websocket_server.Make) -> websocket_server.Gateway:
    return await make()
