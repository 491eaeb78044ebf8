"""A TCP proxy in front of a server; a stopped proxy looks like a stopped server."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import httpx

__all__ = ["Proxy"]

SLICED_BYTES: Final = 64
"""Bytes that are sent one at a time if `sliced`: heads of AMQP, PostgreSQL and MongoDB messages."""


class Proxy:
    """Forwards connections of one port of 127.0.0.1 to a server."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._client_bytes_flow = asyncio.Event()
        self._client_bytes_flow.set()
        self._server_bytes_flow = asyncio.Event()
        self._server_bytes_flow.set()
        self.sent = b""
        """The latest bytes of the clients, 64 KiB at most."""
        self.port = 0
        self.url = ""
        """The URL of the server through the proxy, if it was opened by one."""
        self.received = 0
        """Bytes that clients have sent, forwarded or held."""
        self.turns = 0
        """Times at which a client has sent bytes after the server: round trips, of all together."""
        self.delay = 0.0
        """Seconds by which bytes are delayed in each direction."""
        self.jitter = 0.0
        """Further seconds of delay, at most: random for each piece."""
        self.sliced = False
        """Whether the first bytes of each piece are sent one at a time."""
        self._client_is_next = True

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["Proxy"]:
        """Start a proxy to the server of a URL with a port; stop it at the end."""
        server = httpx.URL(url)
        proxy = cls(server.host, server.port or 0)
        await proxy.start()
        proxy.url = str(server.copy_with(port=proxy.port))
        try:
            yield proxy
        finally:
            proxy.flow()
            await proxy.stop()

    async def start(self) -> None:
        """Listen: the first time on a free port, then on the same one."""
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Break every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
        self.break_()

    def break_(self) -> None:
        """Break every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """Forward nothing until `flow`; the connections stay open."""
        self._flows.clear()

    def hold_client_bytes(self) -> None:
        """Forward nothing to the server until `flow`."""
        self._client_bytes_flow.clear()

    def hold_server_bytes(self) -> None:
        """Forward nothing to the clients until `flow`."""
        self._server_bytes_flow.clear()

    def flow(self) -> None:
        """Forward the held bytes, and the following ones."""
        self._flows.set()
        self._client_bytes_flow.set()
        self._server_bytes_flow.set()

    def tell_clients(self, data: bytes) -> None:
        """Send bytes to every client in place of the server."""
        for writer in self._clients:
            writer.write(data)

    def _count_turn(self, *, of_client: bool) -> None:
        self.turns += of_client and self._client_is_next
        self._client_is_next = not of_client

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:  # the server does not run
            writer.transport.abort()
            return
        both = {writer, server_writer}
        self._writers |= both
        self._clients.add(writer)
        await asyncio.gather(
            self._copy(reader, server_writer, of_client=True),
            self._copy(server_reader, writer, of_client=False),
        )
        self._writers -= both
        self._clients.discard(writer)

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, of_client: bool
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                self._count_turn(of_client=of_client)
                if self.delay or self.jitter:
                    await asyncio.sleep(self.delay + self.jitter * random.random())  # noqa: S311
                if of_client:
                    self.received += len(data)
                    self.sent = data
                    await asyncio.sleep(0)  # a test may stall now
                    await self._client_bytes_flow.wait()
                else:
                    await self._server_bytes_flow.wait()
                await self._flows.wait()
                for piece in self._pieces(data):
                    writer.write(piece)
                    await writer.drain()
        writer.close()

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        """Return the data as it is sent; asyncio sets TCP_NODELAY, so each piece is a segment."""
        single = SLICED_BYTES if self.sliced else 0
        for position in range(min(single, len(data))):
            yield data[position : position + 1]
        if len(data) > single:
            yield data[single:]
