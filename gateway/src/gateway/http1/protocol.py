"""HTTP/1.1 for uvicorn: reads the requests of a connection, one after the other.

The next head is read after the previous response is written. Responses therefore keep the order of
the requests, and an invalid request is refused after the responses to the valid ones.
"""

import asyncio
import re
from functools import partial
from typing import Any, Final, cast

from gateway.cors import Cors
from gateway.http1.application_connection import ApplicationConnection
from gateway.http1.deadlines import NEVER
from gateway.http1.head import parse_head
from gateway.http1.head_fields import HEAD_BYTES
from gateway.http1.http_limits import ConnectionCounts, HttpLimits
from gateway.http1.response_writer import ResponseWriter
from gateway.http1.upgrade import is_handshake
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


class Http1Protocol(ApplicationConnection):
    """A connection that reads requests, one after the other."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_begun = False
        self._searched = 0  # bytes of an incomplete head in which its end is not
        self._discarded = 0

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
        end = self._buffer.find(b"\r\n\r\n", self._searched, HEAD_BYTES)
        if end < 0:
            self._await_head()
            return False
        if not self._head_begun:
            self._began = self._loop.time()
        self._head_begun = False
        self._searched = 0
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
        if _BARE_LINE_END.search(self._buffer, self._searched):
            raise HttpError(reasons.MALFORMED_HTTP, "A line of the head does not end with CR LF.")
        self._searched = max(0, len(self._buffer) - 3)  # all but a part of CR LF CR LF
        if not self._head_begun:
            self._head_begun = True
            self._began = self._loop.time()
            self._deadlines.read_until(self._began + self._limits.head_seconds)

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
