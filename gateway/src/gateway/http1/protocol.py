"""HTTP/1.1 for uvicorn: reads the requests of a connection, one after the other.

The next head is read after the previous response is written. Responses therefore keep the order of
the requests, and an invalid request is refused after the responses to the valid ones.
"""

import asyncio
import re
from functools import partial
from typing import Any, Final, cast

from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.cors import Cors
from gateway.http1.body_framing import ChunkedBody, SizedBody
from gateway.http1.buffered_connection import BufferedConnection
from gateway.http1.deadlines import NEVER
from gateway.http1.exchange import Exchange
from gateway.http1.head import Head, parse_head
from gateway.http1.head_fields import CHUNKED, HEAD_BYTES
from gateway.http1.http_limits import ConnectionCounts, HttpLimits
from gateway.http1.response_writer import ResponseWriter
from gateway.http1.upgrade import hand_over, is_handshake, rebuild, require_handshake
from gateway.problems import HttpError
from gateway.request_body import too_large
from postbus import reasons
from shared.errors import Outcome, ServiceError

__all__ = ["http1"]

_DISCARDED_BYTES: Final = 128 << 20
"""Most bytes that are read and discarded so that a client can read the response that refused it."""
_EMPTY_LINES: Final = re.compile(rb"\A(?:\r\n)+")
_BARE_LINE_END: Final = re.compile(rb"(?<!\r)\n|\r[^\n]")


def http1(
    limits: HttpLimits,
    clients: ConnectionCounts,
    cors: Cors = Cors(()),  # noqa: B008  # never changed
) -> type[asyncio.Protocol]:
    """Return the protocol class for `http` of uvicorn's Config.

    `cors` has the origins of the pages that may read the problems of the protocol.
    """
    protocol = partial(Http1Protocol, limits=limits, clients=clients, cors=cors)
    return cast("type[asyncio.Protocol]", protocol)  # uvicorn only calls it


class Http1Protocol(BufferedConnection):
    """A connection that reads requests and runs the application for each of them."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: HttpLimits,
        clients: ConnectionCounts,
        cors: Cors,
    ) -> None:
        loop = _loop or asyncio.get_running_loop()
        super().__init__(server_state, loop, limits=limits, clients=clients, cors=cors)
        self._config = config
        self._app = config.loaded_app
        self._app_state = app_state
        self._head_begun = False
        self._began = 0.0  # start of the request, by the loop's clock
        self._discarded = 0

    # asyncio.Protocol

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the resources of the connection, and report the disconnect to the exchange."""
        super().connection_lost(exc)
        if self._exchange is not None:
            self._exchange.disconnect()
            self._exchange = None

    def data_received(self, data: bytes) -> None:
        """Read the requests that have arrived."""
        if self._closing:
            self._discarded += len(data)
            if self._discarded > _DISCARDED_BYTES:
                self._transport.abort()
            return
        self._buffer = self._buffer + data if self._buffer else data
        self._advance()

    def resume_writing(self) -> None:
        """Let the application write again, and read further requests."""
        super().resume_writing()
        self._advance()

    def shutdown(self) -> None:
        """Close after the current response (called by uvicorn)."""
        if self._exchange is not None and not self._exchange.complete:
            self._exchange.keep_alive = False
        elif self._closing or not self.writable:
            self.abort()
        else:
            self.close()

    def _advance(self) -> None:
        try:
            while not self._closing and self._read_next():
                pass
            if self._unfinished or self._body is not None or self._buffer:
                self._count_unfinished()
        except ServiceError as error:
            self._fail(error)
        self.update_reading()

    def _read_next(self) -> bool:
        """Read the next head or part of a body; return whether more may be readable."""
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
        if head.upgrade and is_handshake(head) and self._config.ws_protocol_class is not None:
            self._read_handshake(head)
            return False
        if head.content_length > self._limits.max_body_bytes:
            raise too_large(self._limits.max_body_bytes)
        self._begin(head)
        return self._body is not None

    def _await_head(self) -> None:
        if len(self._buffer) >= HEAD_BYTES:
            raise HttpError(reasons.HEAD_TOO_LARGE, "The request's head is larger than 64 KiB.")
        if _BARE_LINE_END.search(self._buffer):
            raise HttpError(reasons.MALFORMED_HTTP, "A line of the head does not end with CR LF.")
        if not self._head_begun:
            self._head_begun = True
            self._began = self._loop.time()
            self._deadlines.read_until(self._began + self._limits.head_seconds)

    def _begin(self, head: Head) -> None:
        """Run the application for a request."""
        length = head.content_length
        body = None
        if 0 <= length <= len(self._buffer):  # usually the whole body has arrived
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
        self._run(exchange, scope)

    def _run(self, exchange: Exchange, scope: Scope) -> None:
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

    def _read_handshake(self, head: Head) -> None:
        """Upgrade the connection, or refuse the handshake.

        The application is run for a refused handshake as well, so that it can count it.
        """
        try:
            require_handshake(head)
        except HttpError as error:
            scope = self._scope(head)
            scope["type"] = "websocket"
            self._deadlines.reading = NEVER
            self._exchange = exchange = Exchange(
                scope, self, keep_alive=False, expects_continue=False, body=b""
            )
            exchange.failure = error
            self._run(exchange, scope)
        else:
            self._upgrade(head)

    def _upgrade(self, head: Head) -> None:
        """Hand the connection over to the WebSocket protocol; it counts until it is lost."""
        protocol = self._config.ws_protocol_class(  # type: ignore[misc, call-arg]
            config=self._config, server_state=self._server_state, app_state=self._app_state
        )
        self._server_state.connections.discard(self)
        self._deadlines.cancel()
        self._closing = True
        received, self._buffer = self._buffer, b""
        self.update_reading()  # now: afterwards, `protocol` pauses and resumes the transport
        hand_over(
            self._transport,
            protocol,
            head=rebuild(head),
            received=received,
            lost=self._release,
        )

    def finish(self, response: ResponseWriter) -> None:
        """See Connection."""
        self._server_state.total_requests += 1
        if self._unfinished:
            self._count_unfinished()
        if not response.keep_alive:
            self.close() if response.body_complete else self._linger()
            return
        if response.body_complete:
            self._exchange, self._fields = None, []
            self._deadlines.read_within(self._limits.idle_seconds)
        if self._buffer or not self._reading:
            self._advance()

    def _fail(self, error: ServiceError) -> None:
        """Stop reading; respond with the error unless the application has begun a response."""
        exchange = self._exchange
        if exchange is None:
            self.refuse(error)
        elif exchange.complete:
            self._linger()
        else:
            self._closing = True
            self._discard_input()
            self._deadlines.reading = NEVER
            exchange.disconnect(error)

    def _end_reading(self) -> None:
        """See Connection; 408 for a request (RFC 9110, section 15.5.9)."""
        if self._closing:
            self._transport.abort()
        elif self._exchange is not None:
            seconds = self._limits.request_seconds
            message = f"The request was not received within {seconds:g} seconds."
            self._fail(HttpError(reasons.REQUEST_TOO_SLOW, message, outcome=Outcome.UNKNOWN))
        elif self._head_begun:
            seconds = self._limits.head_seconds
            message = f"The request's head was not received within {seconds:g} seconds."
            self.refuse(HttpError(reasons.HEAD_TOO_SLOW, message))
        else:
            self.close()
