"""The Connect protocol: every rpc that clients may call (connectrpc.com/docs/protocol).

The routes follow from the names alone: `POST /postbus.posts.v1.PostsService/GetPost`. Dispatch,
limits and the reader of ProtoJSON are those of REST.
"""

import asyncio
import time
from functools import partial
from typing import Final

from google.protobuf.message import Message

from gateway.call_metadata import header_fields
from gateway.connect_codecs import TooLargeError, compressed, decompressed
from gateway.connect_envelopes import Encoded, end_of_stream, envelope, only_message
from gateway.connect_errors import error_response
from gateway.connect_request import ConnectHead, codec_of, media_type, read_head, read_query
from gateway.endpoint import Endpoint, Response
from gateway.large_inputs import LARGE_BYTES
from gateway.problems import HttpError, problem
from gateway.request_body import read_body
from gateway.response_headers import NO_CACHE, NO_STORE, PRIVATE, REPLAYED, SECURITY, Header
from gateway.responses import HttpResponse
from gateway.rpc_request import RpcRequest
from gateway.services import Services
from gateway.streaming import StreamResponse
from postbus.registry import METHODS, Access, Method
from shared.bus import Call, CallResult
from shared.errors import ServiceError
from shared.metadata import Metadata, read_metadata
from shared.output_only import remover
from shared.wire import message_class, require_valid

__all__ = ["ConnectEndpoint", "connect_endpoints"]

_COMPRESSED_FROM: Final = 1024
"""Smallest response in bytes that is compressed."""
_THREAD_FROM: Final = 64 * 1024
"""Smallest response in bytes that a thread compresses: about a millisecond."""
_FRAMING_BYTES: Final = 5
"""The bytes before a message in a stream."""


def connect_endpoints(services: Services) -> "dict[tuple[str, str], ConnectEndpoint]":
    """Return the endpoints of the contract, by verb and path."""
    found = {}
    for method in METHODS.values():
        if method.access is Access.INTERNAL:
            continue
        endpoint = ConnectEndpoint(method, services)
        found["POST", method.route] = endpoint
        if not method.has_side_effects and not method.streams:
            found["GET", method.route] = endpoint
    return found


class ConnectEndpoint(Endpoint):
    """One method over the Connect protocol."""

    def __init__(self, method: Method, services: Services) -> None:
        super().__init__(method, method.route, ("GET", "HEAD", "POST"), services)
        self._max_bytes = services.max_body_bytes
        self._small_bytes = min(LARGE_BYTES, self._max_bytes)
        self._request_class = message_class(method.request_name)
        self._remove_output_only = remover(self._request_class.DESCRIPTOR)

    def _error_response(self, failure: ServiceError, request: RpcRequest) -> HttpResponse:
        if isinstance(failure, HttpError) and failure.reason.http_status == 415:
            response = problem(failure, request.trace_id)
            response.headers.append(self._cors.vary)
            return response
        codec = codec_of(request.headers, self.method)
        if self.method.streams and codec is not None:
            headers = self._headers(request.trace_id, media_type(codec, streams=True))
            headers += header_fields(failure.reply_headers)
            end = end_of_stream(failure, failure.reply_trailers, request.trace_id)
            return HttpResponse(200, headers, end)
        headers = [
            self._cors.vary,
            *_metadata_fields(failure.reply_headers, failure.reply_trailers),
        ]
        return error_response(failure, request.trace_id, headers)

    async def _answer(self, request: RpcRequest) -> Response:
        streams = self.method.streams
        rate_headers = await self._admit(request)
        head = self._head(request)
        payload = await self._payload(request, head)
        has_timeout = b"connect-timeout-ms" in request.headers
        call = self._new_call(request, payload, head.timeout, has_client_timeout=has_timeout)
        headers = self._headers(request.trace_id, media_type(head.codec, streams=streams))
        headers += rate_headers
        if streams:
            return await self._envelopes(request, head, call, headers)
        result = await self._result(request, call)
        headers.append(self._caching(head, private=bool(request.token)))
        return await self._success(head, result, headers)

    def _head(self, request: RpcRequest) -> ConnectHead:
        if request.scope["method"] == "POST":
            return read_head(request.headers, self.method)
        return read_query(request.scope["query_string"], request.headers, self.method)

    async def _payload(self, request: RpcRequest, head: ConnectHead) -> bytes:
        """Return the request message, encoded, and valid by the rules of the contract.

        A message that is large, or may be once it is decompressed, is read in the thread.
        """
        data, gzip = await self._message(request, head)
        request.arrived = time.monotonic()
        if len(data) <= LARGE_BYTES:
            try:
                small = decompressed(data, self._small_bytes) if gzip else data
            except TooLargeError:
                pass
            else:
                return self._read(head, small).SerializeToString()
        read = partial(self._read_compressed, head, data, gzip=gzip)
        return await self._read_large(request, head.timeout, read)

    async def _message(self, request: RpcRequest, head: ConnectHead) -> Encoded:
        """Return the encoded message as it was sent, of at most `_max_bytes`."""
        data = head.message
        if data is None and request.exchange is not None:
            data = request.exchange.take_body()
        limit = self._max_bytes + (_FRAMING_BYTES if self.method.streams else 0)
        if data is None:
            try:
                data = await read_body(request.receive, limit)
            except HttpError:
                raise TooLargeError(self._max_bytes) from None
        if self.method.streams:
            return only_message(data, gzip=head.gzip, max_bytes=self._max_bytes)
        if len(data) > limit:
            raise TooLargeError(self._max_bytes)
        return data, head.gzip and bool(data)

    def _read_compressed(self, head: ConnectHead, data: bytes, *, gzip: bool) -> bytes:
        content = decompressed(data, self._max_bytes) if gzip else data
        return self._read(head, content).SerializeToString()

    def _read(self, head: ConnectHead, data: bytes) -> Message:
        message = head.codec.read(self._request_class, data)
        if self._remove_output_only is not None:
            self._remove_output_only(message)
        require_valid(message)
        return message

    def _headers(self, trace_id: str, content_type: bytes) -> list[Header]:
        return [
            (b"content-type", content_type),
            (b"trace-id", trace_id.encode()),
            self._cors.vary,
            *SECURITY,
        ]

    def _caching(self, head: ConnectHead, *, private: bool) -> Header:
        if head.message is None or self.method.secret_response:
            return NO_STORE
        return PRIVATE if private else NO_CACHE

    async def _success(
        self, head: ConnectHead, result: CallResult, headers: list[Header]
    ) -> HttpResponse:
        content, is_compressed = await self._encode(head, result.payload)
        if is_compressed:
            headers.append((b"content-encoding", b"gzip"))
        if result.replayed:
            headers.append(REPLAYED)
        if (reply := result.reply) is not None and (reply.headers or reply.trailers):
            headers += _metadata_fields(read_metadata(reply.headers), read_metadata(reply.trailers))
        headers += ((b"vary", b"Accept-Encoding"), (b"content-length", b"%d" % len(content)))
        return HttpResponse(200, headers, content)

    async def _encode(self, head: ConnectHead, payload: bytes) -> Encoded:
        """Return a response message as the client accepts it."""
        content = head.codec.write(self._reply(payload))
        if not head.accepts_gzip or len(content) < _COMPRESSED_FROM:
            return content, False
        if len(content) < _THREAD_FROM:
            return compressed(content), True
        return await asyncio.to_thread(compressed, content), True

    async def _envelopes(
        self, request: RpcRequest, head: ConnectHead, call: Call, headers: list[Header]
    ) -> StreamResponse:
        """Return the stream; its status is 200 even if the call fails: the end has the error."""

        async def encode(payload: bytes) -> bytes:
            return envelope(await self._encode(head, payload))

        def end(failure: ServiceError | None) -> bytes:
            trailers = failure.reply_trailers if failure else call.trailers
            return end_of_stream(failure, trailers, request.trace_id)

        response = await self._stream(request, call, encode=encode, end=end)
        response.headers += [*headers, NO_STORE]
        if head.accepts_gzip:
            response.headers.append((b"connect-content-encoding", b"gzip"))
        return response


def _metadata_fields(headers: Metadata, trailers: Metadata) -> list[Header]:
    """Return the header fields of a unary response; its trailers have a prefix."""
    return header_fields(headers) + header_fields(trailers, "trailer-")
