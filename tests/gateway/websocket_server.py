"""A listening WebSocket endpoint with limits that a test chooses, and its clients."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode

from gateway.services import Services
from gateway.socket_limits import SocketLimits
from gateway.websocket import WebSocketEndpoint
from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus
from tests.gateway.listening import Socket, listening
from tests.tokens import TokenMaker

PUBLIC = "postbus.posts.v1.PostDeleted"
LIST = "postbus.posts.v1.PostsService.ListPosts"
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%b\r\n"
)


class Gateway:
    """A listening WebSocket endpoint, with limits that the test chooses."""

    def __init__(self, services: Services, port: int, tokens: TokenMaker) -> None:
        self.services = services
        self.port = port
        self._tokens = tokens

    @asynccontextmanager
    async def anonymous(self, **options: Any) -> AsyncIterator[Socket]:
        """Connect without authenticating."""
        url = f"ws://127.0.0.1:{self.port}/ws"
        async with connect(url, **{"compression": None} | options) as connection:
            yield Socket(connection)

    @asynccontextmanager
    async def user(self, name: str = "alice", **options: Any) -> AsyncIterator[Socket]:
        """Connect and authenticate."""
        async with self.anonymous(**options) as socket:
            assert "authenticated" in await socket.request(self.authenticate(name))
            yield socket

    def authenticate(self, name: str, **options: Any) -> dict[str, Any]:
        token = self._tokens.token(name, **options)
        return {"id": "a", "authenticate": {"accessToken": token}}

    async def raw(self, headers: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect without a library, to write arbitrary bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(HANDSHAKE % headers)
        return reader, writer

    async def accepted(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect without a library, and read the response to the handshake."""
        reader, writer = await self.raw()
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        return reader, writer

    @property
    def held(self) -> tuple[int, int, int, int]:
        """Numbers of keys with sockets (addresses, users) and subscriptions, and of listeners."""
        quotas = self.services.socket_quotas
        sockets = len(quotas.addresses), len(quotas.users)
        return *sockets, len(quotas.subscriptions), len(self.services.subscriptions)

    async def nothing_held(self) -> None:
        """Wait until everything is released."""
        async with asyncio.timeout(5):
            while self.held != (0, 0, 0, 0):  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)


@asynccontextmanager
async def gateway_with(
    bus: MemoryBus,
    verifier: TokenVerifier,
    tokens: TokenMaker,
    *,
    server: Mapping[str, float] = MappingProxyType({}),
    limits: SocketLimits = SocketLimits(),  # noqa: B008  # frozen
) -> AsyncIterator[Gateway]:
    services = Services.create(
        bus,
        verifier,
        max_body_bytes=2**20,
        socket_limits=limits,
        allowed_origins=("https://ours",),
    )
    await services.subscribe()
    async with listening(WebSocketEndpoint(services), **server) as port:
        yield Gateway(services, port, tokens)


class Make:
    """Starts gateways that stop with the test."""

    def __init__(
        self, bus: MemoryBus, verifier: TokenVerifier, tokens: TokenMaker, stack: AsyncExitStack
    ) -> None:
        self._bus, self._verifier, self._tokens = bus, verifier, tokens
        self._stack = stack

    async def __call__(self, **limits: int) -> Gateway:
        started = gateway_with(
            self._bus, self._verifier, self._tokens, limits=SocketLimits(**limits)
        )
        return await self._stack.enter_async_context(started)


def masked(payload: bytes, opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    return Frame(opcode, payload, fin).serialize(mask=True)


async def closed_with(reader: asyncio.StreamReader) -> tuple[int, str, int]:
    """Return code and reason of the close frame, and the number of frames before it."""
    async with asyncio.timeout(10):
        for before in range(100_000):
            head, length = await reader.readexactly(2)
            if length == 126:
                length = int.from_bytes(await reader.readexactly(2), "big")
            payload = await reader.readexactly(length)
            if head == 0x88:
                return int.from_bytes(payload[:2], "big"), payload[2:].decode(), before
    raise AssertionError("no close frame")


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged errors, except errors about tasks of earlier tests."""
    records = [each for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")]
    return [each.message for each in records if "was destroyed" not in each.message]


def subscribe(id_: str, *types: str) -> dict[str, Any]:
    return {"id": id_, "subscribe": {"types": types}}
