"""The socket to the broker: separates message frames from the frames that aiormq handles.

Installed by aiormq's public TransportFactory. aiormq gets a stream without the message frames of
the channels that a MessageChannel has registered.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import structlog
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from shared.bus.amqp.frame_format import ProtocolError
from shared.bus.amqp.frame_reader import FrameReader
from shared.bus.amqp.received_messages import Message

__all__ = ["Factory", "Transport"]

_log = structlog.get_logger()
_HEARTBEAT: Final = b"\x08\0\0\0\0\0\0\xce"
_HEARTBEAT_SECONDS: Final = 1.0
"""Shortest time between two heartbeats that are passed to aiormq in place of message frames."""
_WRITE_BUFFER: Final = 2**20
"""Bytes in the socket's send buffer above which senders must wait."""


class Transport(asyncio.Protocol):
    """Passes messages to their channels and all other frames to aiormq's stream.

    The frames that are sent in one event-loop tick leave in one write.
    """

    def __init__(self, inner: asyncio.StreamReaderProtocol) -> None:
        self.blocked = False
        """Whether the broker accepts no messages at the moment, for lack of memory or disk."""
        self.writable = True
        """Whether the socket's send buffer has space."""
        self.close_reason = ""
        """Why the connection was closed: the broker's reply code and text, or that the bytes were
        not AMQP; empty if neither is known."""
        self.on_lost: Callable[[], None] = lambda: None
        self._inner = inner
        self._reader = FrameReader(inner.data_received, self._on_blocked, self._on_closing)
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes] = []
        self._scheduled = False
        self._before: deque[Callable[[], None]] = deque()
        self._last: deque[Callable[[], bytes]] = deque()
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._heartbeat_at = 0.0

    def register(self, channel: int, handler: Callable[[Message], None], frame_max: int) -> None:
        """Pass the messages and confirms of a channel to `handler` from now on.

        `frame_max` is the largest frame in bytes, as negotiated with the broker.
        """
        self._reader.frame_max = frame_max
        self._reader.channels[channel] = handler

    def unregister(self, channel: int) -> None:
        """Pass all frames of a channel to aiormq again."""
        self._reader.unregister(channel)

    def send(self, data: bytes) -> None:
        """Send complete frames at the end of this tick."""
        self._out.append(data)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def send_now(self, data: bytes) -> None:
        """Send complete frames and everything that waits for the end of this tick."""
        self._out.append(data)
        self.flush()

    def before_sending(self, callback: Callable[[], None]) -> None:
        """Run `callback` at the end of this tick, before the tick's frames are written."""
        self._before.append(callback)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def send_last(self, frames: Callable[[], bytes]) -> None:
        """Send the result of `frames` at the end of this tick, after all other frames."""
        self._last.append(frames)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send the frames that wait for the end of this tick."""
        try:
            while self._before:
                self._before.popleft()()
        finally:
            self._scheduled = False
        out, self._out = self._out, []
        while self._last:
            out.append(self._last.popleft()())
        if out and not self._socket.is_closing():
            self._socket.write(b"".join(out))

    async def wait_writable(self) -> None:
        """Return once the socket's send buffer has space, or the connection is lost."""
        await self._resumed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound the send buffer; see asyncio.Protocol."""
        self._socket = cast("asyncio.WriteTransport", transport)
        self._socket.set_write_buffer_limits(_WRITE_BUFFER)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection, and let waiting senders find it lost."""
        self._resume()
        self._inner.connection_lost(exc)
        self.on_lost()

    def eof_received(self) -> bool | None:
        """Treat the end of the stream as a lost connection: aiormq can be slow to detect it."""
        self.on_lost()
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """Make senders wait; see asyncio.Protocol."""
        self.writable = False
        self._resumed.clear()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Release the waiting senders; see asyncio.Protocol."""
        self._resume()
        self._inner.resume_writing()

    def _resume(self) -> None:
        self.writable = True
        self._resumed.set()

    def data_received(self, data: bytes) -> None:
        """Parse frames, and pass the messages to their channels and the rest to aiormq."""
        try:
            found = self._reader.read(data)
        except ProtocolError as error:
            self.close_reason = f"the server does not speak AMQP 0-9-1: {error}"
            self._socket.abort()
            return
        if found and (now := self._loop.time()) - self._heartbeat_at > _HEARTBEAT_SECONDS:
            # otherwise aiormq sees no frames and closes the connection after missed heartbeats
            self._heartbeat_at = now
            self._inner.data_received(_HEARTBEAT)

    def _on_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        _log.warning("bus.blocked" if blocked else "bus.unblocked")

    def _on_closing(self, reason: str) -> None:
        self.close_reason = reason


class Factory(TransportFactory):
    """Opens a Transport, with TLS for amqps."""

    transport: Transport | None = None

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, and return aiormq's streams; see TransportFactory."""
        context = kwargs.pop("ssl_context_provider", None)
        tls = await context.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        inner = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            socket, self.transport = await loop.create_connection(
                lambda: Transport(inner), url.host or "", url.port or 0, ssl=tls, **kwargs
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        return reader, asyncio.StreamWriter(socket, inner, reader, loop)
