"""The gateway alone: the bus in memory, with a worker that answers what a test wants."""

from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.app import build_app
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


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
async def bus(worker: Worker) -> MemoryBus:
    bus = MemoryBus()
    await bus.serve("everything", list(METHODS), worker.handle)
    return bus


@pytest.fixture
async def gateway(bus: MemoryBus, verifier: TokenVerifier) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(bus, verifier, max_body_bytes=10_000)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client
