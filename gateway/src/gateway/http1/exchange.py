"""One request and its response, as an ASGI application receives and sends them."""

import asyncio
from collections.abc import Callable, Iterable
from enum import Enum, auto
from http import HTTPStatus
from typing import Final, Protocol, cast

import structlog
from starlette.types import ASGIApp, Message, Scope

from gateway.http1.head import FIELD_TEXT
from shared.errors import ServiceError, internal

__all__ = ["EXCHANGE", "Connection", "Exchange"]

_log = structlog.get_logger()

EXCHANGE: Final = "postbus.exchange"
"""ASGI extension of each scope: the Exchange. Its `respond` and `on_disconnect` cost less than the
messages of ASGI that they stand for (5 and 8 us a request)."""

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus
}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_JOIN_BYTES: Final = 64 * 1024
"""Up to this size, the first part of a body is written together with its head."""


class Connection(Protocol):
    """The connection of an exchange, as the exchange uses it."""

    tasks: set[asyncio.Task[None]]
    """The running tasks of the server."""
    writable: bool
    """Whether the transport takes more to write; if not, `drain`."""

    def write(self, data: bytes) -> None:
        """Send bytes."""
        ...

    async def drain(self) -> None:
        """Return once the client has read most of the written bytes, or has left."""
        ...

    def default_fields(self) -> bytes:
        """Return the field lines that every response has."""
        ...

    def read_on(self) -> None:
        """Receive more of the body: the application has taken all that came."""
        ...

    def finish(self, exchange: "Exchange") -> None:
        """Go on to the next request: this one's response is complete."""
        ...

    def refuse(self, error: ServiceError) -> None:
        """Answer with an error in place of a response, then close."""
        ...

    def close(self) -> None:
        """Close: the response stays incomplete."""
        ...

    def abort(self) -> None:
        """Close at once: bytes that are written but not sent are lost."""
        ...


class _Delimiter(Enum):
    """How a client knows the end of a response's body."""

    NO_BODY = auto()
    LENGTH = auto()
    CHUNKS = auto()
    CLOSE = auto()


class Exchange:
    """One request, with the application that answers it in a task of its own."""

    __slots__ = (
        "_awaits_continue",
        "_body",
        "_changed",
        "_connection",
        "_delimiter",
        "_end_received",
        "_head",
        "_left",
        "_method",
        "_on_disconnect",
        "_path",
        "_version",
        "body_complete",
        "buffered",
        "complete",
        "failure",
        "gone",
        "keep_alive",
        "started",
        "task",
    )

    def __init__(
        self,
        scope: Scope,
        connection: Connection,
        *,
        keep_alive: bool,
        expects_continue: bool,
        body: bytes | None,
    ) -> None:
        """Take a request with its whole body, or with None if that is still to come."""
        scope["extensions"] = {EXCHANGE: self}
        self.keep_alive = keep_alive
        self.body_complete = body is not None
        self.buffered = 0
        """Bytes of the body that the application has not taken yet."""
        self.started = False
        """Whether the application has begun its response."""
        self.complete = False
        """Whether the response has been written."""
        self.gone = False
        """Whether the client has left."""
        self.failure: ServiceError | None = None
        """Why the rest of the body can't be read."""
        self.task: asyncio.Task[None] | None = None
        """The task of `run`, as long as it runs."""
        self._method: str = scope["method"]  # not the scope: it refers to this exchange
        self._path: str = scope["path"]
        self._version: str = scope["http_version"]
        self._connection = connection
        self._awaits_continue = expects_continue
        self._body = [body] if body else []
        self._end_received = False
        self._on_disconnect: Callable[[], None] | None = None
        self._changed: asyncio.Event | None = None
        self._head = b""  # written together with the first part of the body
        self._delimiter = _Delimiter.NO_BODY
        self._left = 0

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Let the application answer; answer in its place if it fails to."""
        try:
            await app(scope, self.receive, self.send)
            if self._is_left_open():
                _log.error("request.unanswered", path=self._path)
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            self.gone = True
            self._connection.abort()
            raise
        except Exception as error:  # noqa: BLE001  # the edge of the process
            if self._is_left_open():
                _log.error("request.failed", path=self._path, exc_info=error)
        finally:
            if self.task is not None:
                self._connection.tasks.discard(self.task)
                self.task = None
            if not self.complete and not self.gone:
                self._end()

    def _is_left_open(self) -> bool:
        return not (self.complete or self.gone or self.failure is not None)

    def feed(self, content: bytes) -> None:
        """Take a part of the body."""
        self._body.append(content)
        self.buffered += len(content)
        self.wake()

    def disconnect(self, failure: ServiceError | None = None) -> None:
        """End the request: the client has left, or the rest of the body can't be read."""
        if failure is None:
            self.gone = True
        self.failure = failure
        self.keep_alive = False
        self.wake()
        if self._on_disconnect is not None:
            self._on_disconnect()
            self._on_disconnect = None

    def on_disconnect(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` once the request has ended without a complete response; None: no more.

        `receive` reports the same, but needs a task that waits.
        """
        self._on_disconnect = callback
        if callback is not None and (self.gone or self.failure is not None):
            self._on_disconnect = None
            callback()

    def wake(self) -> None:
        """Wake `receive`: the state of the exchange has changed."""
        if self._changed is not None:
            self._changed.set()

    def take_body(self) -> bytes | None:
        """Return the whole body, None if it has not arrived: `receive` waits for it."""
        if not self.body_complete or self.gone or self.failure is not None:
            return None
        return cast("bytes", self._next_part()["body"])

    async def receive(self) -> Message:
        """Return the next part of the body, or http.disconnect (ASGI)."""
        if self._awaits_continue:
            self._awaits_continue = False
            if not (self._body or self.body_complete or self.started or self.failure):
                self._connection.write(_CONTINUE)
        while not (self.complete or self.gone):
            if self._body or (self.body_complete and not self._end_received):
                return self._next_part()
            if self.failure is not None:
                break
            if self._changed is None:
                self._changed = asyncio.Event()
            self._changed.clear()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    def _next_part(self) -> Message:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._end_received = self.body_complete
        if self.buffered:
            self.buffered = 0
            self._connection.read_on()
        return {"type": "http.request", "body": body, "more_body": not self.body_complete}

    def respond(self, status: int, fields: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
        """Write a whole response, as two calls of `send` do; False if `send` has to wait."""
        if self.gone or self.started or not self._connection.writable:
            return False
        self._start(status, fields)
        self._send_body(body, False)
        return True

    async def send(self, message: Message) -> None:
        """Write a part of the response; nothing if the client has left (ASGI)."""
        if not self._connection.writable:
            await self._connection.drain()
        if self.gone:
            return
        kind = message["type"]
        if kind == "http.response.body" and self.started and not self.complete:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start" and not self.started:
            self._start(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"{kind} was sent out of turn")

    def _start(self, status: int, fields: Iterable[tuple[bytes, bytes]]) -> None:
        fields = list(fields)
        values = dict(fields)
        if b"connection" in values:
            self.keep_alive = self.keep_alive and values[b"connection"].lower() != b"close"
            fields = [field for field in fields if field[0] != b"connection"]
        lines = b"".join([b"%b: %b\r\n" % field for field in fields])
        if lines.translate(None, FIELD_TEXT) != b"\r\n" * len(fields):
            raise RuntimeError("a field of the response holds a control character")
        self.started = True
        self._head = b"".join(
            (
                _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status,
                lines,
                self._connection.default_fields(),
                self._framing(status, values.get(b"content-length")),
            )
        )

    def _framing(self, status: int, length: bytes | None) -> bytes:
        """Decide how the body ends, and return the last lines of the head (RFC 9112, section 6)."""
        line = b""
        if self._method == "HEAD" or status in (204, 304):
            self._delimiter = _Delimiter.NO_BODY
        elif length is not None:
            self._delimiter = _Delimiter.LENGTH
            self._left = int(length)
        elif self._version == "1.1":
            self._delimiter = _Delimiter.CHUNKS
            line = b"transfer-encoding: chunked\r\n"
        else:
            self._delimiter = _Delimiter.CLOSE
            self.keep_alive = False
        if not self.body_complete and (self._awaits_continue or self.failure is not None):
            self.keep_alive = False  # the client may or may not send the rest of the body
        return line + (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")

    def _send_body(self, body: bytes, more: bool) -> None:
        if self._delimiter is _Delimiter.LENGTH:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the response's body has another length than it announced")
        elif self._delimiter is _Delimiter.CHUNKS:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                body += b"0\r\n\r\n"
        elif self._delimiter is _Delimiter.NO_BODY:
            body = b""
        self._write(body)
        if not more:
            self.complete = True
            self._on_disconnect = None
            self.wake()
            self._connection.finish(self)

    def _write(self, body: bytes) -> None:
        head, self._head = self._head, b""
        if len(body) <= _JOIN_BYTES:
            self._connection.write(head + body)
            return
        if head:
            self._connection.write(head)
        self._connection.write(body)

    def _end(self) -> None:
        """End a response that the application has not completed."""
        if self.started and not self._head:
            self._connection.close()
        else:
            self._connection.refuse(self.failure or internal())
