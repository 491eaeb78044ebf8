"""The connection of a client: admission, writing and closing.

`gateway.http1.protocol` adds the reading of requests.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from gateway.client_addresses import network_of
from gateway.cors import Cors
from gateway.http1.deadlines import NEVER, Deadlines
from gateway.http1.head_fields import FieldLines
from gateway.http1.http_limits import ConnectionCounts, HttpLimits
from gateway.problems import problem
from shared.errors import ServiceError
from shared.trace import new_traceparent, trace_id

if TYPE_CHECKING:
    from gateway.http1.response_writer import ResponseWriter

__all__ = ["Connection"]

_MAX_REFUSED: Final = 256
"""Most open connections that were refused with a response; further ones get no response."""


class Connection(asyncio.Protocol):
    """A connection, as an exchange and the server use it. A subclass reads the requests."""

    write: Callable[[bytes], None]
    """Sends bytes: the method of the transport."""

    def __init__(
        self,
        server_state: ServerState,
        loop: asyncio.AbstractEventLoop,
        *,
        limits: HttpLimits,
        clients: ConnectionCounts,
        cors: Cors,
    ) -> None:
        self.tasks = server_state.tasks
        """The running tasks of the server."""
        self.writable = True
        """Whether the transport accepts more bytes; if not, call `drain` before `write`."""
        self._server_state = server_state
        self._loop = loop
        self._limits = limits
        self._clients = clients
        self._cors = cors
        self._fields: FieldLines = []  # of the current request
        self._expects_body = True  # of a response: not after HEAD
        self._network: str | None = None  # if the connection was admitted
        self._refused = False
        self._deadlines = Deadlines(loop, self._on_deadline)
        self._closing = False  # further bytes from the client are discarded
        self._drained: asyncio.Event | None = None
        self._unwritten = 0
        self._unfinished = 0  # bytes that count in `clients.unfinished`
        self._defaults: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")

    def update_reading(self) -> None:
        """Read from the transport, unless enough input is buffered."""
        raise NotImplementedError

    def finish(self, response: "ResponseWriter") -> None:
        """Continue with the next request: `response` is complete."""
        raise NotImplementedError

    def _discard_input(self) -> None:
        raise NotImplementedError

    def _end_reading(self) -> None:
        """End an idle connection, or a request that exceeds its deadline."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit the client or refuse it."""
        self._transport = transport
        self.write = transport.write
        self._client = get_remote_addr(transport)
        self._server = get_local_addr(transport)
        self._scheme = "https" if is_ssl(transport) else "http"
        self._server_state.connections.add(self)  # type: ignore[arg-type]
        network = network_of(self._client[0]) if self._client else ""
        refusal = self._clients.admit(network)
        if refusal is None:
            self._network = network
            self._deadlines.read_within(self._limits.head_seconds)
        elif self._clients.refused < _MAX_REFUSED:
            self._clients.refused += 1
            self._refused = True
            self.refuse(refusal)
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the resources of the connection."""
        self._server_state.connections.discard(self)
        self._deadlines.cancel()
        self._closing = True
        self._discard_input()
        self._release()
        self._set_writable()

    def _release(self) -> None:
        if self._network is not None:
            self._clients.release(self._network)
            self._network = None
        if self._refused:
            self._clients.refused -= 1
            self._refused = False

    def pause_writing(self) -> None:
        """Set the deadline for the client to receive the written bytes."""
        self.writable = False
        self._unwritten = self._transport.get_write_buffer_size()
        self._deadlines.write_within(self._limits.write_seconds)

    def resume_writing(self) -> None:
        """Let the application write again."""
        self._set_writable()

    def _set_writable(self) -> None:
        self.writable = True
        if not self._closing:  # else the last bytes may still be unsent
            self._deadlines.writing = NEVER
        if self._drained is not None:
            self._drained.set()

    async def drain(self) -> None:
        """Return once most of the written bytes are sent, or the client has disconnected."""
        if self._drained is None:
            self._drained = asyncio.Event()
        while not self.writable:
            self._drained.clear()
            await self._drained.wait()

    def default_fields(self) -> bytes:
        """Return the field lines of every response; uvicorn renews their values each second."""
        fields, lines = self._defaults
        if fields is not self._server_state.default_headers:
            fields = self._server_state.default_headers
            lines = b"".join(b"%b: %b\r\n" % field for field in fields)
            self._defaults = (fields, lines)
        return lines

    def refuse(self, error: ServiceError) -> None:
        """Send a problem instead of the application's response, then close."""
        response = problem(error, trace_id(new_traceparent()))
        origin = next((value for name, value in self._fields if name == b"origin"), None)
        response.headers += self._cors.headers(origin)
        head = b"HTTP/1.1 %d \r\n" % response.status
        head += b"".join(b"%b: %b\r\n" % field for field in response.headers)
        head += self.default_fields() + b"connection: close\r\n\r\n"
        self.write(head + response.body if self._expects_body else head)
        self._linger()

    def _linger(self) -> None:
        """Close in two steps, so that the client can read the response (RFC 9112, section 9.6)."""
        self._closing = True
        self._discard_input()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._deadlines.read_within(self._limits.linger_seconds)
        self.update_reading()

    def close(self) -> None:
        """Close once the written bytes are sent."""
        self._closing = True
        self._transport.close()
        self._unwritten = self._transport.get_write_buffer_size()
        self._deadlines.reading = NEVER
        self._deadlines.write_within(self._limits.write_seconds)

    def abort(self) -> None:
        """Close at once: written bytes that are not yet sent are lost."""
        self._closing = True
        self._transport.abort()

    def _on_deadline(self) -> None:
        now = self._loop.time()
        if self._deadlines.writing <= now:
            self._check_progress()
        if self._deadlines.reading <= now:
            self._deadlines.reading = NEVER
            self._end_reading()

    def _check_progress(self) -> None:
        """Abort unless the client has received bytes since the last check."""
        unwritten = self._transport.get_write_buffer_size()
        if unwritten >= self._unwritten:
            self._deadlines.writing = NEVER
            self._transport.abort()
        else:
            self._unwritten = unwritten
            self._deadlines.write_within(self._limits.write_seconds)
