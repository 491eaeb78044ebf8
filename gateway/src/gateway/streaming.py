"""Responses of streaming methods, for REST and the Connect protocol."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from starlette.types import Receive, Send

from gateway.disconnect import cancelled_by_disconnect
from gateway.response_headers import Header
from shared.errors import ServiceError

__all__ = ["StreamResponse"]


class StreamResponse:
    """The response of a streaming method, with the interface of HttpResponse.

    `encode` returns the part of the body for a payload. `failure` returns the error to send for an
    exception in the middle, when the status is already sent. `end` returns the last part, with that
    error if there is one; it may be empty.
    """

    def __init__(
        self,
        payloads: AsyncGenerator[bytes, None],
        *,
        encode: Callable[[bytes], Awaitable[bytes]],
        failure: Callable[[Exception], ServiceError],
        end: Callable[[ServiceError | None], bytes],
    ) -> None:
        self.status = 200
        self.headers: list[Header] = []
        self._payloads = payloads
        self._encode = encode
        self._failure = failure
        self._end = end
        self._first: bytes | None = None

    async def begin(self, receive: Receive) -> None:
        """Wait for the first payload; raise the call's error if there is none."""
        with cancelled_by_disconnect(receive):
            self._first = await anext(self._payloads, None)

    def respond(self, _exchange: object) -> bool:
        """Return False: a stream cannot be written at once."""
        return False

    async def send(self, receive: Receive, send: Send) -> None:
        """Send each part when its payload is received.

        If the client disconnects, cancel the call and raise ClientDisconnect.
        """
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        async with aclosing(self._payloads):
            with cancelled_by_disconnect(receive, after=0):
                await send(start)
                async for part in self._parts():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        failure: ServiceError | None = None
        try:
            if self._first is not None:
                yield await self._encode(self._first)
                async for payload in self._payloads:
                    yield await self._encode(payload)
        except Exception as error:  # noqa: BLE001  # every request gets a response
            failure = self._failure(error)
        if last := self._end(failure):
            yield last
