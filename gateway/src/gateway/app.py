"""The application: what is served where."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from gateway.connection import Services
from gateway.contracts import publication_routes
from gateway.endpoint import endpoints
from gateway.events import EventFeed
from gateway.health import Health
from gateway.metrics import Metrics, RequestMetrics
from gateway.problems import HttpError, problem
from gateway.revocations import SessionVerifier
from gateway.routing import ContractRoutes
from gateway.socket_limits import SocketLimits, SocketQuotas
from gateway.websocket import WebSocketEndpoint
from shared.errors import Code, ServiceError, internal
from shared.identity import TokenVerifier
from shared.messagebus import MessageBus
from shared.trace import child_traceparent, new_traceparent, trace_id

__all__ = ["build_app"]

_log = structlog.get_logger()


def build_app(
    bus: MessageBus,
    verifier: TokenVerifier,
    *,
    max_body_bytes: int,
    sockets: SocketLimits = SocketLimits(),  # noqa: B008  # frozen
) -> FastAPI:
    """Return the gateway, calling over `bus` and hearing its events while it runs."""
    feed, metrics, health = EventFeed(bus), Metrics(bus), Health(bus)
    sessions = SessionVerifier(bus, verifier)
    services = Services(
        bus=bus,
        verifier=sessions,
        feed=feed,
        limits=sockets,
        quotas=SocketQuotas(sockets),
        max_bytes=max_body_bytes,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # They wait where the broker is away.
        hearing = asyncio.gather(feed.run(), sessions.run())
        yield
        hearing.cancel()
        with suppress(asyncio.CancelledError):
            await hearing

    app = FastAPI(
        title="Postbus",
        lifespan=lifespan,
        openapi_url=None,  # our own document is published, and with it our own /docs
        redirect_slashes=False,
    )
    app.router.routes.extend(publication_routes())
    app.router.routes.extend(
        [
            WebSocketRoute("/ws", WebSocketEndpoint(services, metrics, _no_other_origin)),
            Route("/healthz", health.live),
            Route("/readyz", health.ready),
            Route("/metrics", metrics.expose),
        ]
    )
    app.add_exception_handler(HTTPException, _http_problem)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _internal_problem)
    app.add_middleware(ContractRoutes, endpoints=endpoints(bus, sessions, max_body_bytes))
    app.add_middleware(RequestMetrics, metrics=metrics)
    return app


def _no_other_origin(_origin: str) -> bool:
    return False


async def _http_problem(request: Request, error: HTTPException) -> Response:
    """What the router refuses, such as an unknown path."""
    status = HTTPStatus(error.status_code)
    code = Code.NOT_FOUND if status is HTTPStatus.NOT_FOUND else Code.UNIMPLEMENTED
    reason = "UNKNOWN_PATH" if status is HTTPStatus.NOT_FOUND else status.name
    refused = HttpError(status, code, reason, status.description, headers=dict(error.headers or {}))
    return _traced(refused, trace_id(child_traceparent(request.headers.get("traceparent", ""))))


async def _internal_problem(request: Request, error: Exception) -> Response:
    """What nobody foresaw; the log has it, the client gets nothing of the inside."""
    trace = getattr(request.state, "trace_id", "") or trace_id(new_traceparent())
    _log.error("request.failed", path=request.url.path, trace_id=trace, exc_info=error)
    return _traced(internal(), trace)


def _traced(error: ServiceError, trace: str) -> Response:
    response = problem(error, trace)
    response.headers["Trace-Id"] = trace
    return response
