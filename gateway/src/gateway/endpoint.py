"""REST: each rpc with a google.api.http rule, as a plain ASGI application.

A route of the contract is matched before FastAPI and creates only the objects that its request
needs: a route of FastAPI costs several times as much as the call itself.
"""

import asyncio
import time
from collections.abc import Mapping
from functools import partial

from google.protobuf.message import Message
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from gateway.call_metadata import header_fields
from gateway.client_addresses import address_of, network_of
from gateway.conditional import Conditions, contains_tag
from gateway.disconnect import cancelled_by_disconnect
from gateway.failures import failure_of
from gateway.large_inputs import LARGE_BYTES
from gateway.media_types import require_acceptable
from gateway.method_access import authorize
from gateway.problems import problem
from gateway.request_body import default_body, read_body, too_large
from gateway.request_headers import bearer_token, operation_id, timeout
from gateway.response_headers import Header
from gateway.responses import HttpResponse
from gateway.rest_request import RestRequest
from gateway.services import Services
from gateway.streaming import NDJSON, NdjsonResponse
from gateway.success_responses import SuccessResponses
from gateway.targets import query_parameters
from gateway.transcoding import Transcoder
from postbus import reasons
from postbus.registry import METHODS, Access, HttpRule, Method
from shared.bus import Call, call_method
from shared.errors import Code, ServiceError
from shared.metadata import NO_METADATA, read_metadata
from shared.wire import message_class

__all__ = ["Endpoint", "endpoints"]


def endpoints(services: Services) -> dict[tuple[str, str], "Endpoint"]:
    """Return the endpoints of the contract, by verb and path template."""
    found: dict[tuple[str, str], Endpoint] = {}
    for method in METHODS.values():
        for rule in method.http if method.access is not Access.INTERNAL else ():
            found[rule.verb, rule.path] = Endpoint(method, rule, services)
    for (_, path), endpoint in found.items():
        endpoint.read_endpoint = found.get(("GET", path))
    return found


class Endpoint:
    """One HTTP binding of a method: a verb and a path template."""

    read_endpoint: "Endpoint | None" = None
    """The endpoint that reads the same resource, if there is one."""

    def __init__(self, method: Method, rule: HttpRule, services: Services) -> None:
        self.method = method
        self._rule = rule
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
        self._max_body_bytes = services.max_body_bytes
        self._checked_bytes = min(LARGE_BYTES, self._max_body_bytes)
        self._transcoder = Transcoder(method, rule)
        self._success = SuccessResponses(self._transcoder, services.cors)
        self._metrics = services.metrics.of(rule.path, rule.verb)
        self._head_metrics = services.metrics.of(rule.path, "HEAD")
        self._media_type = NDJSON if method.streams else "application/json"
        self._has_response = method.streams or bool(
            self._transcoder.raw_response is None
            and message_class(method.response_name).DESCRIPTOR.fields
        )
        self._is_raw = self._transcoder.raw_request is not None

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, parameters: Mapping[str, str]
    ) -> None:
        """Serve one request; the response to a failure is a problem."""
        metrics = self._head_metrics if scope["method"] == "HEAD" else self._metrics
        began, status = time.perf_counter(), 0
        metrics.begun += 1
        response: HttpResponse | NdjsonResponse
        try:
            request = RestRequest(scope, receive, parameters)
            try:
                response = await self._call(request)
            except ClientDisconnect:
                raise
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # every request gets a response
                response = self._problem(error, request)
            origin = request.headers.get(b"origin")
            if origin is not None:
                response.headers += self._cors.headers(origin)
            status = response.status
            if not response.respond(request.exchange):
                await response.send(receive, send)
        except ClientDisconnect:
            pass
        finally:
            metrics.end(status, time.perf_counter() - began)

    def _problem(self, error: BaseException, request: RestRequest) -> HttpResponse:
        """Return the response to a failed request."""
        failure = failure_of(error, request, self.method, self._security_log)
        response = problem(failure, request.trace_id)
        response.headers.append(self._cors.vary)
        return response

    async def _call(self, request: RestRequest) -> HttpResponse | NdjsonResponse:
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
        conditions = None
        if b"if-match" in sent or b"if-none-match" in sent:
            conditions = Conditions(method, request.scope["method"], sent)
        key, seconds = operation_id(sent), timeout(sent, method)
        metadata = NO_METADATA
        if self._request_metadata.names:
            metadata = self._request_metadata.read(request.scope["headers"])
        message = await self._message(request, caller_id, seconds)
        if conditions is not None:
            conditions.put_expected_version(message)
        call = Call.new(
            message.SerializeToString(),
            budget=seconds - (time.monotonic() - request.arrived),
            access_token=token,
            traceparent=request.traceparent,
            operation_id=key,
            caller_revision=self._revisions.highest(caller_id),
            client_address=address,
            metadata=metadata,
            has_client_timeout=b"request-timeout" in sent,
        )
        headers = self._success.headers(request.trace_id, private=bool(token))
        headers += rate_headers
        if method.streams:
            request.called = True
            return await self._stream(request, call, headers)
        with cancelled_by_disconnect(request.receive, request.exchange):
            if conditions is not None and conditions.absent:
                await self._require_absent(request, conditions.absent, token, call)
            request.called = True
            result = await self._send(call)
        self._revisions.record(caller_id, result.caller_revision)
        if result.reply is not None and result.reply.headers:
            headers += header_fields(read_metadata(result.reply.headers))
        return self._success.build(result.payload, conditions, headers, replayed=result.replayed)

    async def _message(self, request: RestRequest, caller_id: str, seconds: float) -> Message:
        """Return the request message of the method, valid by the rules of the contract."""
        if self._has_response:
            require_acceptable(request.headers, self._media_type)
        body = default_body(self._rule, request.headers, raw=self._is_raw)
        if body is None and request.exchange is not None:
            body = request.exchange.take_body()
        if body is None:
            body = await read_body(request.receive, self._max_body_bytes)
        request.arrived = time.monotonic()
        query = query_parameters(request.scope["query_string"])
        if len(body) > self._max_body_bytes:  # the protocol allows slightly more
            raise too_large(self._max_body_bytes)
        if self._is_raw:
            media_type = request.headers.get(b"content-type", b"").decode("latin-1")
            return self._transcoder.read(request.parameters, query, body, media_type=media_type)
        if len(body) > self._checked_bytes:
            read = partial(self._transcoder.read, request.parameters, query, body)
            client = caller_id or network_of(address_of(request.scope))
            with cancelled_by_disconnect(request.receive, request.exchange):
                return await self._large_inputs.read(client, seconds, read)
        return self._transcoder.read(request.parameters, query, body)

    async def _stream(
        self, request: RestRequest, call: Call, headers: list[Header]
    ) -> NdjsonResponse:
        payloads = self._bus.stream(self.method.name, call)
        response = await NdjsonResponse.begin(
            payloads, self._transcoder, request.trace_id, request.receive
        )
        response.headers += headers
        return response

    async def _require_absent(
        self, request: RestRequest, tags: str, token: str, call: Call
    ) -> None:
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
            access_token=token,
            traceparent=request.traceparent,
        )
        try:
            result = await call_method(self._bus, read_endpoint.method, read)
        except ServiceError as error:
            if error.code is Code.NOT_FOUND:
                return
            raise
        if contains_tag(tags, read_endpoint._success.etag(result.payload)):
            raise ServiceError(
                reasons.ALREADY_THERE,
                "If-None-Match contains the current ETag.",
            )
