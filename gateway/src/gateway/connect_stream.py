"""Streams of the Connect protocol: enveloped messages (connectrpc.com/docs/protocol, Streaming)."""

import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

import orjson
from starlette.types import Receive, Send

from gateway.connect_codecs import TooLargeError
from gateway.connect_errors import error_document, protocol_error
from gateway.disconnect import cancelled_by_disconnect
from gateway.response_headers import NO_STORE, Header
from shared.bus import Call
from shared.errors import Code, ServiceError
from shared.metadata import Metadata

__all__ = ["ConnectStream", "Encoded", "end_of_stream", "only_message"]

_PREFIX: Final = struct.Struct(">BI")
_COMPRESSED: Final = 1
_END: Final = 2
"""Flags of an envelope."""

Encoded = tuple[bytes, bool]
"""An encoded message, and whether it is compressed."""


def end_of_stream(error: ServiceError | None, trailers: Metadata | None, trace_id: str) -> bytes:
    """Return the last envelope of a stream, with the error of a failed call, and trailer fields."""
    document: dict[str, Any] = {"metadata": trailers} if trailers else {}
    if error is not None:
        document["error"] = error_document(error, trace_id)
    return _frame(orjson.dumps(document), _END)


def only_message(body: bytes, *, gzip: bool, max_bytes: int) -> Encoded:
    """Return the message of the only envelope in a body, and whether it is compressed.

    `gzip`: the request names a compression. Raises UNIMPLEMENTED unless there is one message,
    INVALID_ARGUMENT for a malformed envelope, INTERNAL for a compressed message without a
    compression, and TooLargeError for a message of more than `max_bytes`.
    """
    if not body:
        raise _not_one()
    if len(body) < _PREFIX.size:
        raise _malformed("An envelope is incomplete.")
    flags, size = _PREFIX.unpack_from(body)
    if flags not in (0, _COMPRESSED):
        raise _malformed("An envelope has unknown flags.")
    if flags and not gzip:
        text = "A message is compressed, but Connect-Content-Encoding is missing."
        raise protocol_error(Code.INTERNAL, text)
    if size > max_bytes:
        raise TooLargeError(max_bytes)
    end = _PREFIX.size + size
    if len(body) < end:
        raise _malformed("An envelope is incomplete.")
    if len(body) > end:
        raise _not_one()
    return body[_PREFIX.size : end], bool(flags)


class ConnectStream:
    """The response of a streaming method: its messages, then the end of the stream.

    The status is 200 even if the call fails: the error is in the end of the stream.
    """

    status = 200

    def __init__(
        self,
        headers: list[Header],
        first: bytes | None,
        payloads: AsyncGenerator[bytes, None],
        *,
        call: Call,
        encode: Callable[[bytes], Awaitable[Encoded]],
        failure: Callable[[Exception], ServiceError],
        trace_id: str,
    ) -> None:
        """Take the first payload and the generator of the others; it sets the trailers of `call`.

        `encode` encodes a payload. `failure` returns the error to send for an exception.
        """
        self.headers = [*headers, NO_STORE]
        self._first = first
        self._payloads = payloads
        self._call = call
        self._encode = encode
        self._failure = failure
        self._trace_id = trace_id

    def respond(self, _exchange: object) -> bool:
        """Return False: a stream cannot be written at once."""
        return False

    async def send(self, receive: Receive, send: Send) -> None:
        """Send each message when it is received.

        If the client disconnects, cancel the call and raise ClientDisconnect.
        """
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        async with aclosing(self._payloads):
            with cancelled_by_disconnect(receive, after=0):
                await send(start)
                async for part in self._frames():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})

    async def _frames(self) -> AsyncGenerator[bytes, None]:
        failure: ServiceError | None = None
        try:
            if self._first is not None:
                yield await self._frame(self._first)
                async for payload in self._payloads:
                    yield await self._frame(payload)
        except Exception as error:  # noqa: BLE001  # every request gets a response
            failure = self._failure(error)
        trailers = failure.reply_trailers if failure else self._call.trailers
        yield end_of_stream(failure, trailers, self._trace_id)

    async def _frame(self, payload: bytes) -> bytes:
        data, is_compressed = await self._encode(payload)
        return _frame(data, _COMPRESSED if is_compressed else 0)


def _frame(data: bytes, flags: int) -> bytes:
    return _PREFIX.pack(flags, len(data)) + data


def _malformed(message: str) -> ServiceError:
    return protocol_error(Code.INVALID_ARGUMENT, message)


def _not_one() -> ServiceError:
    return protocol_error(Code.UNIMPLEMENTED, "The method takes exactly one message.")
