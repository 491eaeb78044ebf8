"""REST: every rpc with a google.api.http rule, as a plain ASGI application.

A contract route is the outermost application and builds nothing that its request does not use:
FastAPI's routes cost several times as much as the call itself.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from google.protobuf.message import Message
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from gateway.addresses import address_of
from gateway.bodies import read_body
from gateway.caller_revisions import CallerRevisions
from gateway.calls import authorize
from gateway.conditional import Conditions, names_tag
from gateway.cors import Cors
from gateway.disconnect import cancelled_by_disconnect
from gateway.headers import Header
from gateway.http1.exchange import EXCHANGE, Exchange
from gateway.large import LARGE_BYTES, read_in_thread
from gateway.media import has_content, require_acceptable, require_json
from gateway.metrics import Metrics
from gateway.problems import HttpError, problem
from gateway.rates import Rates
from gateway.request_headers import Fields, bearer_token, fields_of, operation_id, timeout
from gateway.responses import Answer
from gateway.streaming import NDJSON, StreamAnswer
from gateway.success import Success
from gateway.targets import query_parameters
from gateway.transcoding import Transcoder
from postbus.registry import METHODS, Access, HttpRule, Method
from shared.bus import Call, MessageBus, call_method
from shared.bus.envelope import unavailable
from shared.errors import Code, Outcome, ServiceError, internal
from shared.runtime.session_verifier import SessionVerifier
from shared.trace import child_traceparent
from shared.wire import message_class

__all__ = ["Edge", "Endpoint", "endpoints"]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The services that all endpoints share."""

    bus: MessageBus
    verifier: SessionVerifier
    revisions: CallerRevisions
    rates: Rates
    metrics: Metrics
    cors: Cors
    max_body_bytes: int


@dataclass(slots=True)
class _Request:
    """One request, with the values that several steps of its answer need."""

    scope: Scope
    receive: Receive
    fields: Fields
    parameters: Mapping[str, str]
    traceparent: str
    exchange: Exchange | None
    """The exchange of `gateway.http1`; None with another server."""

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]


def endpoints(edge: Edge) -> dict[tuple[str, str], "Endpoint"]:
    """Return the endpoints of the contract, by verb and path template."""
    found: dict[tuple[str, str], Endpoint] = {}
    for method in METHODS.values():
        for rule in method.http if method.access is not Access.INTERNAL else ():
            found[rule.verb, rule.path] = Endpoint(method, rule, edge)
    for (_, path), endpoint in found.items():
        endpoint.reading = found.get(("GET", path))
    return found


class Endpoint:
    """One binding of a method, `verb` and `path`.

    `reading` is the endpoint that reads the same resource, if there is one.
    """

    reading: "Endpoint | None" = None

    def __init__(self, method: Method, rule: HttpRule, edge: Edge) -> None:
        self.method = method
        self._rule = rule
        self._edge = edge
        self._bus = edge.bus
        self._verifier = edge.verifier
        self._revisions = edge.revisions
        self._rates = edge.rates
        self._transcoder = Transcoder(method, rule)
        self._success = Success(self._transcoder, edge.cors)
        self._metrics = edge.metrics.of(rule.path, rule.verb)
        self._head_metrics = edge.metrics.of(rule.path, "HEAD")
        self._unconditional = Conditions(method, rule.verb, {})
        self._media_type = NDJSON if method.streams else "application/json"
        self._empty = not message_class(method.response_name).DESCRIPTOR.fields

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, parameters: Mapping[str, str]
    ) -> None:
        """Answer one request; every failure is a problem."""
        metrics = self._head_metrics if scope["method"] == "HEAD" else self._metrics
        began, status = time.perf_counter(), 0
        metrics.begun += 1
        try:
            fields = fields_of(scope["headers"])
            extensions = scope.get("extensions")
            request = _Request(
                scope,
                receive,
                fields,
                parameters,
                child_traceparent(fields.get(b"traceparent", b"").decode("latin-1")),
                extensions.get(EXCHANGE) if extensions else None,
            )
            answer = await self._answer(request)
            status = answer.status
            if not answer.respond(request.exchange):
                await answer.send(receive, send)
        except ClientDisconnect:
            pass
        finally:
            metrics.end(status, time.perf_counter() - began)

    async def _answer(self, request: _Request) -> Answer | StreamAnswer:
        try:
            answer = await self._call(request)
        except ServiceError as error:
            answer = self._problem(error, request)
        except ClientDisconnect:
            raise
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            stopped = unavailable("SERVER_STOPPED", "The gateway stops.", Outcome.UNKNOWN)
            answer = self._problem(stopped, request)
        except Exception:  # noqa: BLE001  # the edge: the client waits for an answer
            _log.exception("request.failed", method=self.method.name, trace_id=request.trace_id)
            answer = self._problem(internal(), request)
        origin = request.fields.get(b"origin")
        if origin is not None:
            answer.headers += self._edge.cors.headers(origin)
        return answer

    def _problem(self, error: ServiceError, request: _Request) -> Answer:
        answer = problem(error, request.trace_id)
        answer.headers.append(self._edge.cors.vary)
        return answer

    async def _call(self, request: _Request) -> Answer | StreamAnswer:
        method, fields = self.method, request.fields
        token = bearer_token(fields)
        address = address_of(request.scope)
        try:
            caller = authorize(method, token, self._verifier)
        except ServiceError:
            await self._rates.admit(address, method=method)
            raise
        caller_id = caller.user_id if caller else ""
        limits = await self._rates.admit(address, caller_id, method)
        conditions = self._conditions(request)
        key, seconds = operation_id(fields), timeout(fields, method)
        message = await self._message(request)
        conditions.expect(message)
        call = Call.new(
            message.SerializeToString(),
            deadline=time.time() + seconds,
            access_token=token,
            traceparent=request.traceparent,
            operation_id=key,
            caller_revision=self._revisions.known(caller_id),
            client_address=address,
        )
        headers = self._success.headers(request.trace_id, private=bool(token))
        headers += limits
        if method.streams:
            return await self._stream(request, call, headers)
        with cancelled_by_disconnect(request.receive, request.exchange):
            if conditions.absent:
                await self._require_absent(request, conditions.absent, token, call)
            result = await call_method(self._bus, method, call)
        self._revisions.learn(caller_id, result.caller_revision)
        return self._success.answer(result.payload, conditions, headers, replayed=result.replayed)

    def _conditions(self, request: _Request) -> Conditions:
        fields = request.fields
        if b"if-match" in fields or b"if-none-match" in fields:
            return Conditions(self.method, request.scope["method"], fields)
        return self._unconditional

    async def _message(self, request: _Request) -> Message:
        if not self._empty:
            require_acceptable(request.fields, self._media_type)
        body = self._fixed_body(request.fields)
        if body is None and request.exchange is not None:
            body = request.exchange.take_body()
        if body is None:
            body = await read_body(request.receive, self._edge.max_body_bytes)
        query = query_parameters(request.scope["query_string"])
        if len(body) > LARGE_BYTES:
            return await read_in_thread(self._transcoder.read, request.parameters, query, body)
        return self._transcoder.read(request.parameters, query, body)

    def _fixed_body(self, fields: Fields) -> bytes | None:
        """Return the body of a request without one, None if it has to be read.

        Raises 400 for a body that the method does not take, 415 for one that is not JSON.
        """
        if not self._rule.body:
            if has_content(fields):
                raise HttpError(
                    400, Code.INVALID_ARGUMENT, "BODY_UNEXPECTED", "This takes no body."
                )
            return b""
        if b"content-type" not in fields and not has_content(fields):
            return b"{}"  # every member is left out; the rules say whether one is missing
        require_json(fields, patch=self._rule.verb == "PATCH")
        return None

    async def _stream(self, request: _Request, call: Call, headers: list[Header]) -> StreamAnswer:
        payloads = self._bus.stream(self.method.name, call)
        answer = await StreamAnswer.begin(
            payloads, self._transcoder, request.trace_id, request.receive
        )
        answer.headers += headers
        return answer

    async def _require_absent(self, request: _Request, tags: str, token: str, call: Call) -> None:
        """Raise 412 if If-None-Match of a change names the current ETag (section 13.1.2).

        A resource that can't be read has no ETag.
        """
        reading = self.reading
        if reading is None:
            return
        message = reading._transcoder.read(request.parameters, (), b"")
        read = Call.new(
            message.SerializeToString(),
            deadline=call.deadline,
            access_token=token,
            traceparent=request.traceparent,
        )
        try:
            result = await call_method(self._bus, reading.method, read)
        except ServiceError as error:
            if error.code is Code.NOT_FOUND:
                return
            raise
        if names_tag(tags, reading._success.etag(result.payload)):
            raise ServiceError(
                Code.FAILED_PRECONDITION, "ALREADY_THERE", "If-None-Match names the current ETag."
            )
