"""REST: each rpc with a google.api.http rule (google/api/http.proto)."""

import time
from functools import partial

from google.protobuf.message import Message

from gateway.call_metadata import header_fields
from gateway.conditional import Conditions, contains_tag
from gateway.disconnect import cancelled_by_disconnect
from gateway.endpoint import Endpoint, Response
from gateway.large_inputs import LARGE_BYTES
from gateway.media_types import NDJSON, accepted
from gateway.problems import problem
from gateway.request_body import default_body, read_body, too_large
from gateway.request_headers import timeout
from gateway.response_headers import Header
from gateway.responses import HttpResponse
from gateway.rpc_request import RpcRequest
from gateway.services import Services
from gateway.streaming import StreamResponse
from gateway.success_responses import SuccessResponses
from gateway.targets import query_parameters
from gateway.transcoding import Transcoder
from postbus import reasons
from postbus.registry import METHODS, Access, HttpRule, Method
from shared.bus import Call
from shared.errors import Code, ServiceError
from shared.metadata import read_metadata

__all__ = ["RestEndpoint", "rest_endpoints"]


def rest_endpoints(services: Services) -> dict[tuple[str, str], "RestEndpoint"]:
    """Return the endpoints of the contract, by verb and path template."""
    found: dict[tuple[str, str], RestEndpoint] = {}
    for method in METHODS.values():
        for rule in method.http if method.access is not Access.INTERNAL else ():
            found[rule.verb, rule.path] = RestEndpoint(method, rule, services)
    for (_, path), endpoint in found.items():
        endpoint.read_endpoint = found.get(("GET", path))
    return found


class RestEndpoint(Endpoint):
    """One HTTP binding of a method: a verb and a path template."""

    read_endpoint: "RestEndpoint | None" = None
    """The endpoint that reads the same resource, if there is one."""

    def __init__(self, method: Method, rule: HttpRule, services: Services) -> None:
        super().__init__(method, rule.path, (rule.verb, "HEAD"), services)
        self._rule = rule
        self._max_body_bytes = services.max_body_bytes
        self._transcoder = Transcoder(method, rule)
        self._success = SuccessResponses(self._transcoder, services.cors)
        raw = self._transcoder.raw_request is not None
        self._request_types = None if raw else self._transcoder.request_types

    def _error_response(self, failure: ServiceError, request: RpcRequest) -> HttpResponse:
        response = problem(failure, request.trace_id)
        response.headers.append(self._cors.vary)
        return response

    async def _answer(self, request: RpcRequest) -> Response:
        sent = request.headers
        rate_headers = await self._admit(request)
        conditions = None
        if b"if-match" in sent or b"if-none-match" in sent:
            conditions = Conditions(self.method, request.scope["method"], sent)
        seconds = timeout(sent, self.method)
        offered = self._success.media_types
        media_type = accepted(sent, offered) if offered else ""
        message = await self._message(request, seconds)
        if conditions is not None:
            conditions.put_expected_version(message)
        call = self._new_call(
            request,
            message.SerializeToString(),
            seconds,
            has_client_timeout=b"request-timeout" in sent,
        )
        headers = [
            (b"trace-id", request.trace_id.encode()),
            *self._success.headers[bool(request.token)],
            *rate_headers,
        ]
        if self.method.streams:
            return await self._lines(request, call, headers)
        if conditions is not None and conditions.absent:
            await self._require_absent(request, conditions.absent, call)
        result = await self._result(request, call)
        if result.reply is not None and result.reply.headers:
            headers += header_fields(read_metadata(result.reply.headers))
        reply = self._reply(result.payload)
        return self._success.build(
            reply, conditions, headers, media_type=media_type, replayed=result.replayed
        )

    async def _message(self, request: RpcRequest, seconds: float) -> Message:
        """Return the request message of the method, valid by the rules of the contract."""
        patch = self._rule.verb == "PATCH"
        body, media_type = default_body(request.headers, self._request_types, patch=patch)
        if body is None and request.exchange is not None:
            body = request.exchange.take_body()
        if body is None:
            body = await read_body(request.receive, self._max_body_bytes)
        request.arrived = time.monotonic()
        if len(body) > self._max_body_bytes:  # the protocol allows slightly more
            raise too_large(self._max_body_bytes)
        query = request.scope["query_string"]
        parameters = query_parameters(query) if query else ()
        read = partial(self._transcoder.read, request.parameters, parameters, body, media_type)
        if len(body) > LARGE_BYTES and self._transcoder.raw_request is None:
            return await self._read_large(request, seconds, read)
        return read()

    async def _lines(
        self, request: RpcRequest, call: Call, headers: list[Header]
    ) -> StreamResponse:
        """Return the stream as lines `{"result": ...}`, after a failure with `{"error": ...}`."""

        async def encode(payload: bytes) -> bytes:
            content = self._transcoder.write(self._reply(payload))
            return b'{"result":' + (content) + b"}\n"

        def end(failure: ServiceError | None) -> bytes:
            if failure is None:
                return b""
            return b'{"error":' + problem(failure, request.trace_id).body + b"}\n"

        response = await self._stream(request, call, encode=encode, end=end)
        response.status = self._rule.status
        response.headers += [(b"content-type", NDJSON.encode()), *headers]
        return response

    async def _require_absent(self, request: RpcRequest, tags: str, call: Call) -> None:
        """Raise 412 if If-None-Match of a change contains the current ETag (section 13.1.2).

        A resource that cannot be read has no ETag.
        """
        read_endpoint = self.read_endpoint
        if read_endpoint is None:
            return
        message = read_endpoint._transcoder.read(request.parameters, (), b"")
        read = Call.new(
            message.SerializeToString(),
            budget=call.remaining,
            access_token=request.token,
            traceparent=request.traceparent,
        )
        try:
            with cancelled_by_disconnect(request.receive, request.exchange):
                result = await read_endpoint._send(read)
        except ServiceError as error:
            if error.code is Code.NOT_FOUND:
                return
            raise
        etags = read_endpoint._success.etags(read_endpoint._reply(result.payload))
        if any(contains_tag(tags, each) for each in etags):
            raise ServiceError(reasons.ALREADY_THERE, "If-None-Match contains the current ETag.")
