"""The Connect protocol: every rpc that clients may call (connectrpc.com/docs/protocol).

The routes follow from the names alone: `POST /postbus.posts.v1.PostsService/GetPost`. Dispatch,
limits and the reader of ProtoJSON are those of REST.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Final

from google.protobuf.message import Message
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from gateway.call_metadata import header_fields
from gateway.client_addresses import address_of, network_of
from gateway.connect_codecs import TooLargeError, compressed, decompressed
from gateway.connect_errors import error_response
from gateway.connect_request import ConnectHead, codec_of, media_type, read_head, read_query
from gateway.connect_stream import ConnectStream, Encoded, end_of_stream, only_message
from gateway.disconnect import cancelled_by_disconnect
from gateway.failures import failure_of
from gateway.large_inputs import LARGE_BYTES
from gateway.method_access import authorize
from gateway.problems import HttpError, problem
from gateway.request_body import read_body
from gateway.request_headers import bearer_token, operation_id
from gateway.response_headers import NO_CACHE, NO_STORE, PRIVATE, REPLAYED, SECURITY, Header
from gateway.responses import HttpResponse
from gateway.rest_request import RestRequest
from gateway.services import Services
from postbus.registry import METHODS, Access, Method
from shared.bus import Call, CallResult, call_method
from shared.errors import ServiceError, internal
from shared.limited_log import LimitedLog
from shared.metadata import NO_METADATA, Metadata, read_metadata
from shared.output_only import remover
from shared.wire import message_class, parse, require_valid

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


class ConnectEndpoint:
    """One method over the Connect protocol."""

    def __init__(self, method: Method, services: Services) -> None:
        self.method = method
        self._bus = services.bus
        own = services.own_methods.get(method.name)
        self._send = own or partial(call_method, services.bus, method)
        self._verifier = services.verifier
        self._revisions = services.revisions
        self._rates = services.rates
        self._large_inputs = services.large_inputs
        self._cors = services.cors
        self._request_metadata = services.metadata
        self._security_log = services.security_log
        self._max_bytes = services.max_body_bytes
        self._small_bytes = min(LARGE_BYTES, self._max_bytes)
        self._request = message_class(method.request_name)
        self._remove_output_only = remover(self._request.DESCRIPTOR)
        self._metrics = services.metrics
        self._log = LimitedLog()

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, _parameters: Mapping[str, str]
    ) -> None:
        """Serve one request."""
        metrics = self._metrics.of(self.method.route, scope["method"])
        began, status = time.perf_counter(), 0
        metrics.begun += 1
        try:
            request = RestRequest(scope, receive, {})
            response = await self._respond(request)
            response.headers += self._cors.headers(request.headers.get(b"origin"))
            status = response.status
            if not response.respond(request.exchange):
                await response.send(receive, send)
        except ClientDisconnect:
            pass
        finally:
            metrics.end(status, time.perf_counter() - began)

    async def _respond(self, request: RestRequest) -> HttpResponse | ConnectStream:
        try:
            return await self._call(request)
        except ClientDisconnect:
            raise
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # every request gets a response
            failure = self._failure(request, error)
        codec = codec_of(request.headers, self.method)
        if isinstance(failure, HttpError) and failure.reason.http_status == 415:
            response = problem(failure, request.trace_id)
            response.headers.append(self._cors.vary)
            return response
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

    def _failure(self, request: RestRequest, error: BaseException) -> ServiceError:
        return failure_of(error, request, self.method, self._security_log)

    async def _call(self, request: RestRequest) -> HttpResponse | ConnectStream:
        method, sent = self.method, request.headers
        token = bearer_token(sent)
        address = address_of(request.scope)
        try:
            caller = authorize(method, token, self._verifier)
        except ServiceError:
            await self._rates.admit(address, method=method)
            raise
        caller_id = caller.user_id if caller else ""
        rate_headers = await self._rates.admit(address, caller_id, method)
        head = self._head(request)
        key = operation_id(sent)
        payload = await self._payload(request, head, caller_id or network_of(address))
        call = Call.new(
            payload,
            budget=head.timeout - (time.monotonic() - request.arrived),
            access_token=token,
            traceparent=request.traceparent,
            operation_id=key,
            caller_revision=self._revisions.highest(caller_id),
            client_address=address,
            metadata=self._request_metadata.read(request.scope["headers"]),
            has_client_timeout=b"connect-timeout-ms" in sent,
        )
        request.called = True
        headers = self._headers(request.trace_id, media_type(head.codec, streams=method.streams))
        headers += rate_headers
        if method.streams:
            return await self._begin_stream(request, head, call, headers)
        with cancelled_by_disconnect(request.receive, request.exchange):
            result = await self._send(call)
        self._revisions.record(caller_id, result.caller_revision)
        headers.append(self._caching(head, private=bool(token)))
        return await self._success(head, result, headers)

    def _head(self, request: RestRequest) -> ConnectHead:
        if request.scope["method"] == "POST":
            return read_head(request.headers, self.method)
        return read_query(request.scope["query_string"], request.headers, self.method)

    async def _payload(self, request: RestRequest, head: ConnectHead, client: str) -> bytes:
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
        read = partial(self._read_large, head, data, gzip=gzip)
        with cancelled_by_disconnect(request.receive, request.exchange):
            return await self._large_inputs.read(client, head.timeout, read)

    async def _message(self, request: RestRequest, head: ConnectHead) -> Encoded:
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

    def _read_large(self, head: ConnectHead, data: bytes, *, gzip: bool) -> bytes:
        content = decompressed(data, self._max_bytes) if gzip else data
        return self._read(head, content).SerializeToString()

    def _read(self, head: ConnectHead, data: bytes) -> Message:
        message = head.codec.read(self._request, data)
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
        try:
            message = parse(self.method.response_name, payload)
        except ServiceError:  # a fault of the worker; the call may have had an effect
            self._log.write(logging.WARNING, "reply.malformed", method=self.method.name)
            raise internal() from None
        content = head.codec.write(message)
        if not head.accepts_gzip or len(content) < _COMPRESSED_FROM:
            return content, False
        if len(content) < _THREAD_FROM:
            return compressed(content), True
        return await asyncio.to_thread(compressed, content), True

    async def _begin_stream(
        self, request: RestRequest, head: ConnectHead, call: Call, headers: list[Header]
    ) -> ConnectStream:
        """Return the response once the first message is received, or raise the call's error."""
        payloads = self._bus.stream(self.method.name, call)
        with cancelled_by_disconnect(request.receive):
            first = await anext(payloads, None)
        if head.accepts_gzip:
            headers.append((b"connect-content-encoding", b"gzip"))
        headers += header_fields(call.headers or NO_METADATA)
        return ConnectStream(
            headers,
            first,
            payloads,
            call=call,
            encode=partial(self._encode, head),
            failure=partial(self._failure, request),
            trace_id=request.trace_id,
        )


def _metadata_fields(headers: Metadata, trailers: Metadata) -> list[Header]:
    """Return the header fields of a unary response; its trailers have a prefix."""
    return header_fields(headers) + header_fields(trailers, "trailer-")
