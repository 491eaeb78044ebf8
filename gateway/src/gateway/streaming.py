"""Streams over REST: a line of JSON for each message (application/x-ndjson)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import structlog
from starlette.types import Receive, Send

from gateway.disconnect import cancelled_by_disconnect
from gateway.headers import Header
from gateway.problems import problem
from gateway.transcoding import Transcoder
from shared.errors import ServiceError, internal

__all__ = ["NDJSON", "StreamAnswer"]

_log = structlog.get_logger()
NDJSON: Final = "application/x-ndjson"


class StreamAnswer:
    """The answer of a method that streams; see Answer.

    Each line is `{"result": ...}`. A failure in the middle can't change the status any more: the
    last line is then `{"error": ...}` with the problem.
    """

    def __init__(
        self,
        first: bytes | None,
        payloads: AsyncGenerator[bytes, None],
        transcoder: Transcoder,
        trace_id: str,
    ) -> None:
        self.status = transcoder.rule.status
        self.headers: list[Header] = [(b"content-type", NDJSON.encode())]
        self._first = first
        self._payloads = payloads
        self._transcoder = transcoder
        self._trace_id = trace_id

    @classmethod
    async def begin(
        cls,
        payloads: AsyncGenerator[bytes, None],
        transcoder: Transcoder,
        trace_id: str,
        receive: Receive,
    ) -> "StreamAnswer":
        """Wait for the first message; raises the error that ends the stream before it."""
        with cancelled_by_disconnect(receive):
            first = await anext(payloads, None)
        return cls(first, payloads, transcoder, trace_id)

    def respond(self, _exchange: object) -> bool:
        """Return False: it is not written at once."""
        return False

    async def send(self, receive: Receive, send: Send) -> None:
        """Send every line as it comes; raises ClientDisconnect, and ends the call, if the client
        leaves.
        """
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        async with aclosing(self._payloads):
            with cancelled_by_disconnect(receive, after=0):
                await send(start)
                async for line in self._lines():
                    await send({"type": "http.response.body", "body": line, "more_body": True})
                await send({"type": "http.response.body", "body": b""})

    async def _lines(self) -> AsyncGenerator[bytes, None]:
        try:
            if self._first is not None:
                yield self._line(self._first)
                async for payload in self._payloads:
                    yield self._line(payload)
        except ServiceError as error:
            yield self._last(error)
        except Exception:  # noqa: BLE001  # the edge: the client waits for an answer
            _log.exception(
                "request.failed", method=self._transcoder.method.name, trace_id=self._trace_id
            )
            yield self._last(internal())

    def _last(self, error: ServiceError) -> bytes:
        return b'{"error":' + problem(error, self._trace_id).body + b"}\n"

    def _line(self, payload: bytes) -> bytes:
        transcoder = self._transcoder
        line = transcoder.write(transcoder.response(payload))
        return b'{"result":' + (line or b"{}") + b"}\n"
