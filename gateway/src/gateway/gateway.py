"""The outermost ASGI application."""

import time
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final

import structlog
from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from gateway.client_addresses import address_of
from gateway.endpoint import Endpoint
from gateway.http1.exchange import EXCHANGE
from gateway.problems import HttpError, problem
from gateway.request_headers import headers_of
from gateway.response_headers import SECURITY, Header
from gateway.responses import HttpResponse
from gateway.routing import ContractRoutes
from gateway.services import Services
from gateway.targets import normalized_path
from gateway.websocket import SOCKET_PATH
from postbus import reasons
from shared.errors import ServiceError
from shared.trace import child_traceparent, new_traceparent, trace_id

__all__ = ["Gateway"]

_log = structlog.get_logger()
_UNLIMITED_PATHS: Final = frozenset({b"/healthz", b"/readyz", b"/metrics"})
"""Paths without a rate limit: probes and Prometheus request them regularly."""
_SERVER: Final = b"*"
"""The target of an OPTIONS for the server as a whole (RFC 9110, section 9.3.7)."""
_ALL_VERBS: Final = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"


class Gateway:
    """Serves the contract's routes itself; `inner` serves all other paths.

    Counts every request, and adds the security headers to every response.
    """

    def __init__(
        self,
        routes: ContractRoutes[Endpoint],
        inner: FastAPI,
        services: Services,
    ) -> None:
        self._routes = routes
        self._inner = inner
        self.large_inputs = services.large_inputs
        """The large inputs that wait to be read."""
        self._rates = services.rates
        self._metrics = services.metrics
        self._cors = services.cors
        self._security_log = services.security_log

    def running(self) -> AbstractAsyncContextManager[Any]:
        """Return the context in which the gateway consumes events, for tests without uvicorn."""
        return self._inner.router.lifespan_context(self._inner)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, a WebSocket or the lifespan."""
        if scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)
            return
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return
        try:
            path = scope.get("raw_path") or scope["path"].encode()
            if b"%" in path:
                path = normalized_path(path)
            found = self._routes.find(scope["method"], path)
            if found is None and path not in _UNLIMITED_PATHS:
                await self._rates.admit(address_of(scope))
        except ServiceError as error:
            await self._refuse(error, scope, receive, send)
            return
        if found is not None:
            await found[0](scope, receive, send, found[1])
        elif path == _SERVER:
            await self._send_options(_ALL_VERBS, scope, receive, send)
        elif verbs := self._routes.verbs(path):
            await self._serve_other_verb(verbs, scope, receive, send)
        else:
            await self._serve_inner(scope, receive, send)

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a WebSocket; its handshake counts as a request without a token.

        Only a handshake that the protocol refuses has an exchange. RATE_LIMITED replaces its
        refusal.
        """
        if EXCHANGE in scope.get("extensions", ()):
            await self._rates.admit(address_of(scope))
            return
        try:
            await self._rates.admit(address_of(scope))
            if scope["path"] != SOCKET_PATH:
                raise HttpError(reasons.UNKNOWN_PATH, f"WebSockets connect to {SOCKET_PATH}.")
        except ServiceError as error:
            trace = trace_id(new_traceparent())
            self._security_log.record_refusal(error, address=address_of(scope), trace_id=trace)
            await problem(error, trace)(scope, receive, send)
            return
        await self._inner(scope, receive, send)

    async def _serve_other_verb(
        self, verbs: list[str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve OPTIONS, or refuse a verb without an endpoint, for a path of the contract."""
        allowed = ", ".join(sorted([*verbs, "OPTIONS"]))
        if scope["method"] != "OPTIONS":
            error = HttpError(
                reasons.METHOD_NOT_ALLOWED,
                f"This path does not support {scope['method'][:20]}.",
                headers={"Allow": allowed},
            )
            await self._refuse(error, scope, receive, send)
            return
        await self._send_options(allowed, scope, receive, send)

    async def _send_options(self, allowed: str, scope: Scope, receive: Receive, send: Send) -> None:
        origin = headers_of(scope["headers"]).get(b"origin")
        headers = [(b"allow", allowed.encode()), self._cors.vary, *SECURITY]
        headers += self._cors.preflight(origin, allowed.encode())
        await self._send(HttpResponse(204, headers), scope, receive, send)

    async def _refuse(
        self, error: ServiceError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = headers_of(scope["headers"])
        parent = headers.get(b"traceparent", b"").decode("latin-1")
        trace = trace_id(child_traceparent(parent))
        self._security_log.record_refusal(error, address=address_of(scope), trace_id=trace)
        response = problem(error, trace)
        response.headers += (self._cors.vary, *self._cors.headers(headers.get(b"origin")))
        await self._send(response, scope, receive, send)

    async def _send(
        self, response: HttpResponse, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send a response, and count the request."""
        metrics = self._metrics.of("none", scope["method"])
        metrics.begun += 1
        began = time.perf_counter()
        with suppress(ClientDisconnect):
            await response.send(receive, send)
        metrics.end(response.status, time.perf_counter() - began)

    async def _serve_inner(self, scope: Scope, receive: Receive, send: Send) -> None:
        metrics = self._metrics.of("none", scope["method"])
        origin = headers_of(scope["headers"]).get(b"origin")
        sender = _Sender(send, [*SECURITY, *self._cors.vary_of_public, *self._cors.headers(origin)])
        metrics.begun += 1
        began = time.perf_counter()
        try:
            await self._inner(scope, receive, sender)
        except ClientDisconnect:
            pass
        except Exception:
            if not sender.status:  # else FastAPI has sent a response and logged the error
                raise
        finally:
            metrics.end(sender.status, time.perf_counter() - began)


class _Sender:
    """Sends the responses of the inner application with more headers; keeps their status."""

    def __init__(self, send: Send, headers: list[Header]) -> None:
        self._send = send
        self._headers = headers
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message.get("headers", ())
            names = {name for name, _ in headers}  # a problem has the security headers already
            more = (each for each in self._headers if each[0] not in names or each[0] == b"vary")
            message["headers"] = [*headers, *more]
        try:
            await self._send(message)
        except (OSError, RuntimeError) as error:  # the connection is closed
            _log.debug("request.abandoned", error=repr(error))
            raise ClientDisconnect from error
