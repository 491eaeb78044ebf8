"""REST: every rpc with a google.api.http rule, served by the same few lines.

Plain ASGI, not FastAPI routes: their machinery costs several times what the call itself does.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from google.protobuf.message import Message
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.answers import cache_control, success
from gateway.caller_revisions import CallerRevisions
from gateway.calls import authorize
from gateway.conditional import Conditions
from gateway.disconnect import cancelled_by_disconnect
from gateway.parameters import read_query
from gateway.problems import HttpError, problem
from gateway.request_headers import bearer_token, operation_id, timeout
from gateway.streaming import stream_response
from gateway.transcoding import Transcoder
from postbus.registry import METHODS, Access
from shared.errors import Code, ServiceError
from shared.messagebus import Call, MessageBus, call_method
from shared.revocations import SessionVerifier
from shared.trace import child_traceparent, trace_id

__all__ = ["Endpoint", "endpoints"]

_BODY_SECONDS: Final = 30.0


def endpoints(
    bus: MessageBus, verifier: SessionVerifier, revisions: CallerRevisions, max_body_bytes: int
) -> dict[str, ASGIApp]:
    """Return what serves the contract, by path template."""
    by_path: dict[str, dict[str, Transcoder]] = {}
    for method in METHODS.values():
        for rule in method.http if method.access is not Access.INTERNAL else ():
            by_path.setdefault(rule.path, {})[rule.verb] = Transcoder(method, rule)
    return {
        path: Endpoint(path, bindings, bus, verifier, revisions, max_body_bytes)
        for path, bindings in by_path.items()
    }


class Endpoint:
    """The rpcs that share a path, by HTTP verb: an ASGI application."""

    def __init__(
        self,
        path: str,
        bindings: Mapping[str, Transcoder],
        bus: MessageBus,
        verifier: SessionVerifier,
        revisions: CallerRevisions,
        max_body_bytes: int,
    ) -> None:
        self._path = path
        self._bindings = bindings
        self._bus = bus
        self._verifier = verifier
        self._revisions = revisions
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every failure is a problem."""
        request = Request(scope, receive)
        traceparent = child_traceparent(request.headers.get("traceparent", ""))
        trace = trace_id(traceparent)
        scope["state"].update(route=self._path, trace_id=trace)
        try:
            response = await self._answer(request, traceparent, trace)
        except ServiceError as error:
            response = problem(error, trace)
        except ClientDisconnect:
            return
        response.headers["Trace-Id"] = trace
        response.headers["Vary"] = "Authorization"
        await response(scope, receive, send)

    async def _answer(self, request: Request, traceparent: str, trace: str) -> Response:
        binding = self._binding(request.method)
        method = binding.method
        caller_id = authorize(method, bearer_token(request.headers), self._verifier)
        conditions = Conditions(method, request.method, request.headers)
        key, seconds = operation_id(request.headers), timeout(request.headers, method)
        message = await self._message(request, binding)
        conditions.expect(message)
        call = Call.new(
            message.SerializeToString(),
            deadline=time.time() + seconds,
            access_token=bearer_token(request.headers),
            traceparent=traceparent,
            operation_id=key,
            caller_revision=self._revisions.known(caller_id),
        )
        if method.streams:
            payloads = self._bus.stream(method.name, call)
            response: Response = await stream_response(payloads, binding, trace)
        else:
            with cancelled_by_disconnect(request):
                payload = await call_method(self._bus, method, call)
            self._revisions.learn(caller_id, call.caller_revision)
            response = success(binding, payload, conditions, replayed=call.replayed)
        response.headers["Cache-Control"] = cache_control(method)
        return response

    def _binding(self, verb: str) -> Transcoder:
        found = self._bindings.get("GET" if verb == "HEAD" else verb)
        if found is None:
            allowed = {*self._bindings, *(["HEAD"] if "GET" in self._bindings else [])}
            raise HttpError(
                405,
                Code.UNIMPLEMENTED,
                "METHOD_NOT_ALLOWED",
                f"This path has no {verb}.",
                headers={"Allow": ", ".join(sorted(allowed))},
            )
        return found

    async def _message(self, request: Request, binding: Transcoder) -> Message:
        body = await self._body(request) if binding.rule.body else b""
        return binding.read(request.path_params, read_query(request.scope["query_string"]), body)

    async def _body(self, request: Request) -> bytes:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise HttpError(
                415, Code.INVALID_ARGUMENT, "NOT_JSON", "Send the body as application/json."
            )
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                return await self._read(request)
        except TimeoutError:
            raise HttpError(
                408,
                Code.INVALID_ARGUMENT,
                "BODY_TOO_SLOW",
                f"The body has not come within {_BODY_SECONDS:.0f} seconds.",
            ) from None

    async def _read(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                raise HttpError(
                    413,
                    Code.INVALID_ARGUMENT,
                    "BODY_TOO_LARGE",
                    f"The body is larger than {self._max_body_bytes} bytes.",
                )
        return bytes(body)
