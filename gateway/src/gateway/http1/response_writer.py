"""The response to a request: its head, the framing of its body, and ASGI's `send`."""

import asyncio
from collections.abc import Callable, Collection
from enum import Enum, auto
from http import HTTPStatus
from typing import Final

from starlette.types import Message, Scope

from gateway.http1.connection import Connection
from gateway.http1.head_fields import FIELD_TEXT
from shared.errors import ServiceError

__all__ = ["ResponseWriter"]

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus
}
_JOIN_BYTES: Final = 64 * 1024
"""Up to this size, the first part of a body is written together with its head."""


class _BodyEnd(Enum):
    """How the end of a response's body is marked (RFC 9112, section 6.3)."""

    NO_BODY = auto()
    LENGTH = auto()
    CHUNKS = auto()
    CLOSE = auto()


class ResponseWriter:
    """The response to one request, with the state of the request that decides on it."""

    __slots__ = (
        "_awaits_continue",
        "_body_end",
        "_changed",
        "_connection",
        "_head",
        "_method",
        "_remaining",
        "_version",
        "body_complete",
        "complete",
        "disconnect_callback",
        "disconnected",
        "failure",
        "keep_alive",
        "started",
    )

    def __init__(
        self,
        scope: Scope,
        connection: Connection,
        *,
        keep_alive: bool,
        expects_continue: bool,
        body_complete: bool,
    ) -> None:
        self.keep_alive = keep_alive
        self.body_complete = body_complete
        """Whether the whole body of the request has arrived."""
        self.started = False
        """Whether the application has begun its response."""
        self.complete = False
        """Whether the response has been written."""
        self.disconnected = False
        """Whether the client has disconnected."""
        self.failure: ServiceError | None = None
        """The error with which the request is refused unless the application has responded."""
        self.disconnect_callback: Callable[[], None] | None = None
        """See `Exchange.on_disconnect`; None to remove the callback."""
        self._method: str = scope["method"]
        self._version: str = scope["http_version"]
        self._connection = connection
        self._awaits_continue = expects_continue
        self._changed: asyncio.Event | None = None
        self._head = b""  # written together with the first part of the body
        self._body_end = _BodyEnd.NO_BODY
        self._remaining = 0

    def wake(self) -> None:
        """Wake `receive`: the state of the exchange has changed."""
        if self._changed is not None:
            self._changed.set()

    def respond(self, status: int, fields: Collection[tuple[bytes, bytes]], body: bytes) -> bool:
        """Write a whole response, like two calls of `send`; False if `send` has to be used."""
        if self.disconnected or self.started or not self._connection.writable:
            return False
        self._start(status, fields)
        self._send_body(body, more=False)
        return True

    async def send(self, message: Message) -> None:
        """Write a part of the response (ASGI); without effect if the client has disconnected."""
        if not self._connection.writable:
            await self._connection.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.body" and self.started and not self.complete:
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
        elif kind == "http.response.start" and not self.started:
            self._start(message["status"], tuple(message.get("headers", ())))
        else:
            raise RuntimeError(f"{kind} was sent in the wrong order")

    def _start(self, status: int, fields: Collection[tuple[bytes, bytes]]) -> None:
        values = dict(fields)
        if b"connection" in values:
            self.keep_alive = self.keep_alive and values[b"connection"].lower() != b"close"
            fields = [field for field in fields if field[0] != b"connection"]
        lines = b"".join([b"%b: %b\r\n" % field for field in fields])
        if lines.translate(None, FIELD_TEXT) != b"\r\n" * len(fields):
            raise RuntimeError("a field of the response has a control character")
        self.started = True
        self._head = b"%b%b%b%b" % (
            _STATUS_LINES[status] if status in _STATUS_LINES else b"HTTP/1.1 %d \r\n" % status,
            lines,
            self._connection.default_fields(),
            self._framing(status, values.get(b"content-length")),
        )

    def _framing(self, status: int, length: bytes | None) -> bytes:
        """Set the end of the body, and return the last lines of the head (RFC 9112, section 6)."""
        line = b""
        if self._method == "HEAD" or status in (204, 304):
            self._body_end = _BodyEnd.NO_BODY
        elif length is not None:
            self._body_end = _BodyEnd.LENGTH
            self._remaining = int(length)
        elif self._version == "1.1":
            self._body_end = _BodyEnd.CHUNKS
            line = b"transfer-encoding: chunked\r\n"
        else:
            self._body_end = _BodyEnd.CLOSE
            self.keep_alive = False
        if not self.body_complete and (self._awaits_continue or self.failure is not None):
            self.keep_alive = False  # the client may or may not send the rest of the body
        return line + (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self._body_end is _BodyEnd.LENGTH:
            self._remaining -= len(body)
            if self._remaining < 0 or (self._remaining and not more):
                raise RuntimeError("the length of the response's body differs from Content-Length")
        elif self._body_end is _BodyEnd.CHUNKS:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                body += b"0\r\n\r\n"
        elif self._body_end is _BodyEnd.NO_BODY:
            body = b""
        if self._head and len(body) <= _JOIN_BYTES:
            body = self._head + body
        elif self._head:
            self._connection.write(self._head)
        self._head = b""
        self._connection.write(body)
        if not more:
            self.complete = True
            self.disconnect_callback = None
            if self._changed is not None:
                self._changed.set()
            self._connection.finish(self)
