"""Streams over REST: one line of JSON for each message (application/x-ndjson)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import structlog
from starlette.types import Receive, Send

from gateway.disconnect import cancelled_by_disconnect
from gateway.failures import parse_response
from gateway.problems import problem
from gateway.response_headers import Header
from gateway.transcoding import Transcoder
from shared.errors import ServiceError, internal

__all__ = ["NDJSON", "NdjsonResponse"]

_log = structlog.get_logger()
NDJSON: Final = "application/x-ndjson"


class NdjsonResponse:
    """The response of a streaming method, with the interface of HttpResponse.

    Each line is `{"result": ...}`. After a failure in the middle, when the status is already sent,
    the last line is `{"error": ...}` with the problem.
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
    ) -> "NdjsonResponse":
        """Return the response once the first message is received, or raise the call's error."""
        with cancelled_by_disconnect(receive):
            first = await anext(payloads, None)
        return cls(first, payloads, transcoder, trace_id)

    def respond(self, _exchange: object) -> bool:
        """Return False: a stream cannot be written at once."""
        return False

    async def send(self, receive: Receive, send: Send) -> None:
        """Send each line when its message is received.

        If the client disconnects, cancel the call and raise ClientDisconnect.
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
                yield self._result_line(self._first)
                async for payload in self._payloads:
                    yield self._result_line(payload)
        except ServiceError as error:
            yield self._error_line(error)
        except Exception:  # noqa: BLE001  # every request gets a response
            _log.exception(
                "request.failed", method=self._transcoder.method.name, trace_id=self._trace_id
            )
            yield self._error_line(internal())

    def _result_line(self, payload: bytes) -> bytes:
        transcoder = self._transcoder
        content = transcoder.write(parse_response(transcoder.method, payload))
        return b'{"result":' + (content or b"{}") + b"}\n"

    def _error_line(self, error: ServiceError) -> bytes:
        return b'{"error":' + problem(error, self._trace_id).body + b"}\n"
