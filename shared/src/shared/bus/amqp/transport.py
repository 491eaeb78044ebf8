"""The socket between aiormq and the broker, from which lanes take their frames.

The seam is aiormq's public TransportFactory: aiormq reads a stream as ever, that of all frames but
those of messages on channels that a lane has taken.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import structlog
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from shared.bus.amqp.frames import Message, Parser, ProtocolError

__all__ = ["Factory", "Transport"]

_log = structlog.get_logger()
_HEARTBEAT: Final = b"\x08\0\0\0\0\0\0\xce"
_FED_SECONDS: Final = 1.0
_WRITE_BUFFER: Final = 2**20
"""Bytes that wait for the socket before whoever sends has to wait as well."""


class Transport(asyncio.Protocol):
    """Passes bytes on to aiormq's stream, messages to lanes; sends all of one tick in one write."""

    def __init__(self, inner: asyncio.StreamReaderProtocol) -> None:
        self.blocked = False
        self.has_room = True
        """Whether the socket takes more at this moment."""
        self.on_lost: Callable[[], None] = lambda: None
        self._inner = inner
        self._parser = Parser(self._pass_on, self._on_blocked)
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes] = []
        self._scheduled = False
        self._before: deque[Callable[[], None]] = deque()
        self._last: deque[Callable[[], bytes]] = deque()
        self._room = asyncio.Event()
        self._room.set()
        self._fed = 0.0

    @property
    def frame_max(self) -> int:
        """Bytes of a frame, as agreed with the broker."""
        return self._parser.frame_max

    @frame_max.setter
    def frame_max(self, value: int) -> None:
        self._parser.frame_max = value

    def take(self, channel: int, handler: Callable[[Message], None]) -> None:
        """Pass the messages and confirms of a channel to `handler` from now on."""
        self._parser.channels[channel] = handler

    def leave(self, channel: int) -> None:
        """Pass them on to aiormq again."""
        self._parser.leave(channel)

    def send(self, data: bytes) -> None:
        """Send whole frames at the end of this tick."""
        self._out.append(data)
        if not self._scheduled:
            self._schedule()

    def before_sending(self, callback: Callable[[], None]) -> None:
        """Call back at the end of this tick: what is sent then leaves with all the rest."""
        self._before.append(callback)
        if not self._scheduled:
            self._schedule()

    def send_last(self, frames: Callable[[], bytes]) -> None:
        """Send what `frames` returns at the end of this tick, after all the rest."""
        self._last.append(frames)
        if not self._scheduled:
            self._schedule()

    def flush(self) -> None:
        """Send at once what waits for the end of this tick."""
        while self._before:
            self._before.popleft()()
        out, self._out = self._out, []
        while self._last:
            out.append(self._last.popleft()())
        if out and not self._socket.is_closing():
            self._socket.write(b"".join(out))

    async def room(self) -> None:
        """Return once the socket takes more."""
        await self._room.wait()

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._end_tick)

    def _end_tick(self) -> None:
        try:
            self.flush()
        finally:
            self._scheduled = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._socket = cast("asyncio.WriteTransport", transport)
        self._socket.set_write_buffer_limits(_WRITE_BUFFER)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End; whoever waits for room finds the session lost."""
        self._set_room()
        self._inner.connection_lost(exc)
        self.on_lost()

    def eof_received(self) -> bool | None:
        """Take the end of the stream for the end: aiormq may be slow to notice."""
        self.on_lost()
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """Make senders wait."""
        self.has_room = False
        self._room.clear()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Let them go on."""
        self._set_room()
        self._inner.resume_writing()

    def _set_room(self) -> None:
        self.has_room = True
        self._room.set()

    def data_received(self, data: bytes) -> None:
        """Tell the frames apart."""
        try:
            found = self._parser.feed(data)
        except ProtocolError:
            _log.exception("bus.protocol_error")
            self._socket.abort()
            return
        if found and (now := self._loop.time()) - self._fed > _FED_SECONDS:
            self._fed = now
            self._inner.data_received(_HEARTBEAT)  # else aiormq would take a busy link for dead

    def _on_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        _log.warning("bus.blocked" if blocked else "bus.unblocked")

    def _pass_on(self, data: bytes) -> None:
        self._inner.data_received(data)


class Factory(TransportFactory):
    """Opens a Transport, with TLS for amqps."""

    transport: Transport

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """See TransportFactory."""
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
