"""REST: every rpc with a google.api.http rule, served by the same few lines.

Plain ASGI, not FastAPI routes: their machinery costs several times what the call itself does.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.calls import MAX_TIMEOUT, authorize
from gateway.problems import HttpError, problem
from gateway.routing import ContractRoutes
from gateway.streaming import stream_response
from gateway.transcoding import Transcoder
from postbus.registry import METHODS, Access, HttpRule, Method
from shared.errors import Code, ServiceError
from shared.identity import TokenVerifier
from shared.messagebus import Call, MessageBus, call_method
from shared.trace import child_traceparent, trace_id

__all__ = ["Endpoint", "contract_routes"]

_OPERATION_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_BODY_SECONDS: Final = 30.0
_SECONDS: Final = re.compile(r"\d{1,3}(\.\d{1,20})?")
_MIN_TIMEOUT: Final = 0.001


def contract_routes(
    bus: MessageBus, verifier: TokenVerifier, max_body_bytes: int
) -> ContractRoutes:
    """Return the routes of the contract."""
    by_path: dict[str, dict[str, tuple[Method, HttpRule]]] = {}
    for method in METHODS.values():
        for rule in method.http if method.access is not Access.INTERNAL else ():
            by_path.setdefault(rule.path, {})[rule.verb] = (method, rule)
    return ContractRoutes(
        {
            path: Endpoint(path, rules, bus, verifier, max_body_bytes)
            for path, rules in by_path.items()
        }
    )


class Endpoint:
    """The rpcs that share a path, by HTTP verb: an ASGI application."""

    def __init__(
        self,
        path: str,
        rules: Mapping[str, tuple[Method, HttpRule]],
        bus: MessageBus,
        verifier: TokenVerifier,
        max_body_bytes: int,
    ) -> None:
        self._path = path
        self._rules = {
            verb: (method, rule, Transcoder(method, rule)) for verb, (method, rule) in rules.items()
        }
        self._bus = bus
        self._verifier = verifier
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
        await response(scope, receive, send)

    async def _answer(self, request: Request, traceparent: str, trace: str) -> Response:
        method, rule, transcoder = self._rule(request.method)
        token = _bearer_token(request.headers)
        authorize(method, token, self._verifier)
        body = await self._body(request) if rule.body else b""
        message = transcoder.read(request.path_params, request.query_params.multi_items(), body)
        call = Call.new(
            message.SerializeToString(),
            deadline=time.time() + _timeout(request.headers, method),
            access_token=token,
            traceparent=traceparent,
            operation_id=_operation_id(request.headers),
        )
        if method.streams:
            payloads = self._bus.stream(method.name, call)
            return await stream_response(payloads, transcoder, rule.status, trace)
        with _cancelled_by_disconnect(request):
            payload = await call_method(self._bus, method, call)
        content = transcoder.write(payload)
        status = rule.status if content else 204
        return Response(content, status, media_type="application/json" if content else None)

    def _rule(self, verb: str) -> tuple[Method, HttpRule, Transcoder]:
        found = self._rules.get("GET" if verb == "HEAD" else verb)
        if found is None:
            allowed = {*self._rules, *(["HEAD"] if "GET" in self._rules else [])}
            raise HttpError(
                405,
                Code.UNIMPLEMENTED,
                "METHOD_NOT_ALLOWED",
                f"This path has no {verb}.",
                headers={"Allow": ", ".join(sorted(allowed))},
            )
        return found

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


def _bearer_token(headers: Headers) -> str:
    value = headers.get("authorization", "")
    scheme, _, token = value.partition(" ")
    if value and (scheme.lower() != "bearer" or not token.strip()):
        raise ServiceError(
            Code.UNAUTHENTICATED, "TOKEN_INVALID", "Send the access token as `Bearer <token>`."
        )
    return token.strip()


def _timeout(headers: Headers, method: Method) -> float:
    """Seconds that the client gives the call, or else the method's own."""
    value = headers.get("request-timeout")
    if value is None:
        return method.timeout
    if not _SECONDS.fullmatch(value) or not _MIN_TIMEOUT <= float(value) <= MAX_TIMEOUT:
        raise HttpError(
            400,
            Code.INVALID_ARGUMENT,
            "REQUEST_TIMEOUT_INVALID",
            f"Request-Timeout takes seconds, from {_MIN_TIMEOUT} to {MAX_TIMEOUT:.0f}.",
        )
    return float(value)


class _cancelled_by_disconnect:  # noqa: N801  # a context manager
    """Cancels the task inside once the client has gone: ClientDisconnect."""

    __slots__ = ("_gone", "_listener", "_request", "_task")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._gone = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass  # what is left of the body
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._listener.cancel()
        if self._gone and kind is asyncio.CancelledError:
            raise ClientDisconnect from None


def _operation_id(headers: Headers) -> str:
    value = headers.get("idempotency-key")
    if value is None:
        return ""
    if not _OPERATION_ID.fullmatch(value):
        raise HttpError(
            400,
            Code.INVALID_ARGUMENT,
            "IDEMPOTENCY_KEY_INVALID",
            "Idempotency-Key takes 1 to 128 visible ASCII characters.",
        )
    return value
