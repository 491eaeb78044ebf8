"""Bounds of what a client may send before its request is one.

uvicorn's httptools protocol takes heads of any size and waits for them without end.
"""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.answers import Answer
from gateway.problems import HttpError, problem
from shared.errors import Code
from shared.trace import new_traceparent, trace_id

__all__ = ["BoundedHttpProtocol"]

_HEAD_BYTES: Final = 64 * 1024
_HEAD_SECONDS: Final = 10.0


class BoundedHttpProtocol(HttpToolsProtocol):
    """Request lines and headers of 64 KiB in all, within ten seconds; else the connection ends."""

    _awaits_head = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the first request its time."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time."""
        self._end_head()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Give this request its time."""
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._end_head()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Count what comes before a head is complete."""
        super().data_received(data)
        if self._awaits_head:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self._refuse(431, "HEAD_TOO_LARGE", "The request's head is larger than 64 KiB.")

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(400, "MALFORMED_HTTP", "This is not a valid HTTP request.")

    def _await_head(self) -> None:
        self._end_head()
        self._awaits_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _end_head(self) -> None:
        self._awaits_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()

    def _refuse(self, status: int, reason: str, message: str) -> None:
        error = HttpError(status, Code.INVALID_ARGUMENT, reason, message)
        self.transport.write(_raw(problem(error, trace_id(new_traceparent()))))
        self.transport.close()


def _raw(answer: Answer) -> bytes:
    head = b"HTTP/1.1 %d \r\nconnection: close\r\n" % answer.status
    head += b"".join(b"%s: %s\r\n" % header for header in answer.headers)
    return head + b"\r\n" + answer.body
