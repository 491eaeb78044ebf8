"""HTTP/1.1 for uvicorn: one connection, from its first byte to its last.

Requests are read one after the other: the next head is read once the response before it is
written, so answers keep their order, and an invalid request is answered after the valid ones.
"""

import asyncio
import re
from functools import partial
from typing import Any, Final, cast

from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from gateway.addresses import network_of
from gateway.bodies import too_large
from gateway.cors import Cors
from gateway.http1.body import Body, ChunkedBody, SizedBody
from gateway.http1.deadlines import NEVER, Deadlines
from gateway.http1.exchange import Exchange
from gateway.http1.head import CHUNKED, HEAD_BYTES, Fields, Head, parse_head, refusal
from gateway.http1.http_limits import Clients, HttpLimits
from gateway.http1.upgrade import hand_over, is_handshake, rebuilt, require_handshake
from gateway.problems import problem
from shared.errors import Outcome, ServiceError
from shared.trace import new_traceparent, trace_id

__all__ = ["Http1Protocol", "http1"]

_BUFFER_BYTES: Final = 64 * 1024
"""Bytes of a body or of later requests that are held before the connection is read no further."""
_DISCARDED_BYTES: Final = 128 << 20
"""Most bytes that are read and dropped so that a client sees the answer that refused them."""
_MOST_REFUSED: Final = 256
"""Most connections that are refused with an answer at a time; more are closed without an answer."""
_EMPTY_LINES: Final = re.compile(rb"\A(?:\r\n)+")
_BARE_LINE_END: Final = re.compile(rb"(?<!\r)\n|\r[^\n]")


def http1(
    limits: HttpLimits,
    clients: Clients,
    cors: Cors = Cors(()),  # noqa: B008  # never changed
) -> type[asyncio.Protocol]:
    """Return the protocol with these limits, as uvicorn's Config takes it for `http`.

    `cors` names the pages that may read the refusals of the protocol.
    """
    protocol = partial(Http1Protocol, limits=limits, clients=clients, cors=cors)
    return cast("type[asyncio.Protocol]", protocol)  # uvicorn does nothing but call it


class Http1Protocol(asyncio.Protocol):
    """One connection of a client."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: HttpLimits,
        clients: Clients,
        cors: Cors,
    ) -> None:
        self.tasks = server_state.tasks
        self.writable = True
        self._config = config
        self._app = config.loaded_app
        self._app_state = app_state
        self._server_state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._limits = limits
        self._clients = clients
        self._cors = cors
        self._fields: Fields = []  # of the request that is being served
        self._network: str | None = None  # if the connection was admitted
        self._refused = False
        self._deadlines = Deadlines(self._loop, self._expire)
        self._buffer = b""
        self._head_begun = False
        self._began = 0.0  # the request, by the loop's clock
        self._expects_body = True  # of a response: not after HEAD
        self._exchange: Exchange | None = None
        self._body: Body | None = None  # as long as it is incomplete
        self._body_bytes = 0
        self._resuming = False  # a body that was left for the sake of the event loop
        self._closing = False  # further bytes of the client are dropped
        self._discarded = 0
        self._reading = True
        self._drained: asyncio.Event | None = None
        self._unwritten = 0
        self._defaults: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit the client or refuse it."""
        self._transport = transport
        self._client = get_remote_addr(transport)
        self._server = get_local_addr(transport)
        self._scheme = "https" if is_ssl(transport) else "http"
        self._server_state.connections.add(self)  # type: ignore[arg-type]
        network = network_of(self._client[0]) if self._client else ""
        refused = self._clients.admit(network)
        if refused is None:
            self._network = network
            self._deadlines.read_within(self._limits.head_seconds)
        elif self._clients.refused < _MOST_REFUSED:
            self._clients.refused += 1
            self._refused = True
            self.refuse(refused)
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything that the connection held."""
        self._server_state.connections.discard(self)
        self._release()
        self._deadlines.cancel()
        self._closing = True
        self._buffer, self._body = b"", None
        if self._exchange is not None:
            self._exchange.disconnect()
            self._exchange = None
        self._set_writable()

    def _release(self) -> None:
        if self._network is not None:
            self._clients.release(self._network)
            self._network = None
        if self._refused:
            self._clients.refused -= 1
            self._refused = False

    def data_received(self, data: bytes) -> None:
        """Read requests, as far as they have arrived."""
        if self._closing:
            self._discarded += len(data)
            if self._discarded > _DISCARDED_BYTES:
                self._transport.abort()
            return
        self._buffer = self._buffer + data if self._buffer else data
        self._advance()

    def pause_writing(self) -> None:
        """Set the deadline for the client to read the written bytes."""
        self.writable = False
        self._unwritten = self._transport.get_write_buffer_size()
        self._deadlines.write_within(self._limits.write_seconds)

    def resume_writing(self) -> None:
        """Continue to write, and to read requests."""
        self._set_writable()
        self._advance()

    def _set_writable(self) -> None:
        self.writable = True
        if not self._closing:  # else its last bytes may still wait for the client
            self._deadlines.writing = NEVER
        if self._drained is not None:
            self._drained.set()

    def shutdown(self) -> None:
        """Close, after the response that is being made (uvicorn)."""
        if self._exchange is not None and not self._exchange.complete:
            self._exchange.keep_alive = False
        elif self._closing or not self.writable:
            self.abort()
        else:
            self.close()

    # Reading

    def _advance(self) -> None:
        try:
            while not self._closing and self._read_next():
                pass
        except ServiceError as error:
            self._fail(error)
        self.read_on()

    def read_on(self) -> None:
        """Read from the transport, unless enough is waiting."""
        waiting = len(self._buffer)
        if self._exchange is not None and not self._exchange.complete:
            waiting += self._exchange.buffered
        reading = self._closing or waiting <= _BUFFER_BYTES
        if reading is not self._reading:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _read_next(self) -> bool:
        """Read the next head or part of a body; return whether there may be more to read."""
        if self._exchange is not None and self._body is not None:
            return self._read_body(self._exchange, self._body)
        if self._exchange is not None or not self._buffer or not self.writable:
            return False
        return self._read_head()

    def _read_head(self) -> bool:
        if self._buffer.startswith(b"\r\n"):  # RFC 9112, section 2.2
            self._buffer = _EMPTY_LINES.sub(b"", self._buffer, count=1)
            return True
        end = self._buffer.find(b"\r\n\r\n", 0, HEAD_BYTES)
        if end < 0:
            self._await_head()
            return False
        if not self._head_begun:
            self._began = self._loop.time()
        self._head_begun = False
        self._expects_body = not self._buffer.startswith(b"HEAD ")
        self._fields = []
        head = parse_head(self._buffer[:end])
        self._fields = head.fields
        self._buffer = self._buffer[end + 4 :]
        if is_handshake(head) and self._config.ws_protocol_class is not None:
            require_handshake(head)
            self._upgrade(head)
            return False
        if head.content_length > self._limits.max_body_bytes:
            raise too_large(self._limits.max_body_bytes)
        self._begin(head)
        return self._body is not None

    def _await_head(self) -> None:
        if len(self._buffer) >= HEAD_BYTES:
            raise refusal(431, "HEAD_TOO_LARGE", "The request's head is larger than 64 KiB.")
        if _BARE_LINE_END.search(self._buffer):
            raise refusal(400, "MALFORMED_HTTP", "A line of the head does not end with CR LF.")
        if not self._head_begun:
            self._head_begun = True
            self._began = self._loop.time()
            self._deadlines.read_until(self._began + self._limits.head_seconds)

    def _begin(self, head: Head) -> None:
        length = head.content_length
        body = None
        if 0 <= length <= len(self._buffer):  # all of it has come: most requests
            body, self._buffer = self._buffer[:length], self._buffer[length:]
            self._deadlines.reading = NEVER
        else:
            self._body = ChunkedBody() if length == CHUNKED else SizedBody(length)
            self._body_bytes = 0
            self._deadlines.read_until(self._began + self._limits.request_seconds)
        scope = self._scope(head)
        self._exchange = exchange = Exchange(
            scope,
            self,
            keep_alive=head.keep_alive,
            expects_continue=head.expects_continue,
            body=body,
        )
        exchange.task = self._loop.create_task(exchange.run(self._app, scope))
        self.tasks.add(exchange.task)

    def _scope(self, head: Head) -> Scope:
        root = self._config.root_path
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "server": self._server,
            "client": self._client,
            "scheme": self._scheme,
            "root_path": root,
            "method": head.method,
            "path": root + head.path,
            "raw_path": root.encode() + head.raw_path,
            "query_string": head.query,
            "headers": head.fields,
            "state": self._app_state.copy(),
        }

    def _read_body(self, exchange: Exchange, body: Body) -> bool:
        content, self._buffer = body.read(self._buffer)
        if content:
            self._body_bytes += len(content)
            if not exchange.complete:
                exchange.feed(content)
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

    def _upgrade(self, head: Head) -> None:
        """Hand the connection over; it stays counted until it is lost."""
        received = rebuilt(head) + self._buffer
        protocol = self._config.ws_protocol_class(  # type: ignore[misc, call-arg]
            config=self._config, server_state=self._server_state, app_state=self._app_state
        )
        self._server_state.connections.discard(self)
        self._deadlines.cancel()
        self._closing = True
        self._buffer = b""
        hand_over(self._transport, protocol, received, self._release)

    def _resume(self) -> None:
        self._resuming = False
        self._advance()

    # Writing

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self._transport.write(data)

    async def drain(self) -> None:
        """Return once the client has read most of the written bytes, or has left."""
        if self._drained is None:
            self._drained = asyncio.Event()
        while not self.writable:
            self._drained.clear()
            await self._drained.wait()

    def default_fields(self) -> bytes:
        """Return the field lines that every response has; uvicorn renews them each second."""
        fields, lines = self._defaults
        if fields is not self._server_state.default_headers:
            fields = self._server_state.default_headers
            lines = b"".join(b"%b: %b\r\n" % field for field in fields)
            self._defaults = (fields, lines)
        return lines

    def finish(self, exchange: Exchange) -> None:
        """Continue with the next request: the response to this one is complete."""
        self._server_state.total_requests += 1
        if not exchange.keep_alive:
            self.close() if exchange.body_complete else self._linger()
            return
        if exchange.body_complete:
            self._exchange, self._fields = None, []
            self._deadlines.read_within(self._limits.idle_seconds)
        if self._buffer or not self._reading:
            self._advance()

    # Ending

    def _fail(self, error: ServiceError) -> None:
        """Read nothing more; answer with the error if no response is on its way."""
        exchange = self._exchange
        if exchange is None:
            self.refuse(error)
        elif exchange.complete:
            self._linger()
        else:
            self._closing = True
            self._buffer, self._body = b"", None
            self._deadlines.reading = NEVER
            exchange.disconnect(error)

    def refuse(self, error: ServiceError) -> None:
        """Answer with an error in place of a response, then close."""
        answer = problem(error, trace_id(new_traceparent()))
        origin = next((value for name, value in self._fields if name == b"origin"), None)
        answer.headers += self._cors.headers(origin)
        head = b"HTTP/1.1 %d \r\n" % answer.status
        head += b"".join(b"%b: %b\r\n" % field for field in answer.headers)
        head += self.default_fields() + b"connection: close\r\n\r\n"
        self._transport.write(head + answer.body if self._expects_body else head)
        self._linger()

    def _linger(self) -> None:
        """Close in two steps, so that the client can read the answer (RFC 9112, section 9.6)."""
        self._closing = True
        self._buffer, self._body = b"", None
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._deadlines.read_within(self._limits.linger_seconds)
        self.read_on()

    def close(self) -> None:
        """Close once the written bytes are sent."""
        self._closing = True
        self._transport.close()
        self._unwritten = self._transport.get_write_buffer_size()
        self._deadlines.reading = NEVER
        self._deadlines.write_within(self._limits.write_seconds)

    def abort(self) -> None:
        """Close at once: bytes that are written but not sent are lost."""
        self._closing = True
        self._transport.abort()

    def _expire(self) -> None:
        now = self._loop.time()
        if self._deadlines.writing <= now:
            self._check_progress()
        if self._deadlines.reading <= now:
            self._deadlines.reading = NEVER
            self._end_reading()

    def _check_progress(self) -> None:
        unwritten = self._transport.get_write_buffer_size()
        if unwritten >= self._unwritten:
            self._deadlines.writing = NEVER
            self._transport.abort()
        else:
            self._unwritten = unwritten
            self._deadlines.write_within(self._limits.write_seconds)

    def _end_reading(self) -> None:
        """End an idle connection, or a request that is late (RFC 9110, section 15.5.9)."""
        if self._closing:
            self._transport.abort()
        elif self._exchange is not None:
            seconds = self._limits.request_seconds
            message = f"The request has not come within {seconds:g} seconds."
            self._fail(refusal(408, "REQUEST_TOO_SLOW", message, Outcome.UNKNOWN))
        elif self._head_begun:
            seconds = self._limits.head_seconds
            message = f"The request's head has not come within {seconds:g} seconds."
            self.refuse(refusal(408, "HEAD_TOO_SLOW", message))
        else:
            self.close()
