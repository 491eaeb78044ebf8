"""The received bytes of a connection that no request has taken yet: buffering, pausing, bodies."""

import asyncio
from typing import Final

from uvicorn.server import ServerState

from gateway.cors import Cors
from gateway.http1.body_framing import Body
from gateway.http1.connection import Connection
from gateway.http1.deadlines import NEVER
from gateway.http1.exchange import Exchange
from gateway.http1.http_limits import ConnectionCounts, HttpLimits
from gateway.request_body import too_large
from shared.errors import Outcome

__all__ = ["BufferedConnection"]

_BUFFER_BYTES: Final = 64 * 1024
"""Bytes of a body or of later requests that are buffered before reading is paused."""


class BufferedConnection(Connection):
    """A connection with a bounded buffer, and the body of its current request."""

    def __init__(
        self,
        server_state: ServerState,
        loop: asyncio.AbstractEventLoop,
        *,
        limits: HttpLimits,
        clients: ConnectionCounts,
        cors: Cors,
    ) -> None:
        super().__init__(server_state, loop, limits=limits, clients=clients, cors=cors)
        self._buffer = b""
        self._reading = True
        self._exchange: Exchange | None = None
        self._body: Body | None = None  # only while it is incomplete
        self._body_bytes = 0
        self._resuming = False  # reading of a body is interrupted, so that other tasks run

    def _advance(self) -> None:
        """Read the requests in the buffer."""
        raise NotImplementedError

    def update_reading(self) -> None:
        """See Connection."""
        buffered = len(self._buffer)
        if self._exchange is not None and not self._exchange.complete:
            buffered += self._exchange.buffered
        reading = self._closing or buffered <= _BUFFER_BYTES
        if reading is not self._reading:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _read_body(self, exchange: Exchange, body: Body) -> bool:
        content, self._buffer = body.read(self._buffer)
        if content:
            self._body_bytes += len(content)
            if not exchange.complete:
                exchange.append_body(content)
            if self._body_bytes > self._limits.max_body_bytes:
                raise too_large(self._limits.max_body_bytes, Outcome.UNKNOWN)
        if body.paused and not self._resuming:
            self._resuming = True
            self._loop.call_soon(self._resume)
        if not body.complete:
            return False
        self._body = None
        self._deadlines.reading = NEVER
        exchange.body_complete = True
        exchange.wake()
        if exchange.complete:
            self.finish(exchange)
        return True

    def _count_unfinished(self) -> None:
        """Count the bytes that are held until more arrive; 429 or 503 if these are too many."""
        size = len(self._buffer)
        if self._body is not None and self._exchange is not None and not self._exchange.complete:
            size += self._body_bytes
        self._unfinished = self._clients.unfinished.change(
            self._network or "", held=self._unfinished, size=size
        )

    def _resume(self) -> None:
        self._resuming = False
        self._advance()

    def _discard_input(self) -> None:
        self._buffer, self._body = b"", None
        if self._unfinished:
            self._count_unfinished()
