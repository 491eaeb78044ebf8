"""The gateway as an ASGI application: the contract's routes, and FastAPI for everything else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.routing import WebSocketRoute

from gateway.caller_revisions import CallerRevisions
from gateway.cors import Cors
from gateway.endpoint import Edge, endpoints
from gateway.event_feed import EventFeed
from gateway.gateway import Gateway
from gateway.health import Health
from gateway.metrics import Metrics
from gateway.operations import Operations, security_contact
from gateway.operators import Network, Operators
from gateway.problems import HttpError, problem
from gateway.published_contracts import publication_routes
from gateway.rates import BoundedStorage, Rates, RateSettings
from gateway.responses import Answer
from gateway.routing import ContractRoutes
from gateway.settings import LOOPBACK
from gateway.socket_limits import SocketLimits, SocketQuotas
from gateway.websocket import SOCKET_PATH, WebSocketEndpoint
from gateway.websocket_connection import Services
from shared.bus import MessageBus
from shared.errors import Code, ServiceError, internal
from shared.identity import TokenVerifier
from shared.runtime.session_verifier import SessionVerifier
from shared.trace import new_traceparent, trace_id

__all__ = ["build_app"]

_log = structlog.get_logger()


def build_app(
    bus: MessageBus,
    verifier: TokenVerifier,
    *,
    max_body_bytes: int,
    rates: Rates | None = None,
    sockets: SocketLimits = SocketLimits(),  # noqa: B008  # frozen
    allowed_origins: tuple[str, ...] = (),
    operations_networks: tuple[Network, ...] = LOOPBACK,
    security_contact_uri: str = "",
) -> Gateway:
    """Return the gateway, which calls over `bus` and reads its events while it runs.

    Without `rates`, only methods with a `rate_limit` in the contract have a limit.
    """
    feed, metrics, cors = EventFeed(bus), Metrics(bus), Cors(allowed_origins)
    sessions, revisions = SessionVerifier(bus, verifier), CallerRevisions(bus)
    rates = rates or Rates(RateSettings(), BoundedStorage())
    services = Services(
        bus=bus,
        verifier=sessions,
        feed=feed,
        revisions=revisions,
        rates=rates,
        limits=sockets,
        quotas=SocketQuotas(sockets),
        max_bytes=max_body_bytes,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # Each waits while the broker is unavailable.
        running = asyncio.gather(feed.run(), sessions.run(), revisions.run())
        yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    inner = FastAPI(
        title="Postbus",
        lifespan=lifespan,
        openapi_url=None,  # the generated document is published, with a /docs of its own
        redirect_slashes=False,
    )
    operations = Operations(Health(bus, sessions), metrics, Operators(operations_networks))
    inner.router.routes.extend(
        [
            *publication_routes(),
            *security_contact(security_contact_uri),
            WebSocketRoute(SOCKET_PATH, WebSocketEndpoint(services, metrics, cors.origin_allowed)),
            *operations.routes(),
        ]
    )
    inner.add_exception_handler(HTTPException, _http_problem)  # type: ignore[arg-type]
    inner.add_exception_handler(ServiceError, _service_problem)  # type: ignore[arg-type]
    inner.add_exception_handler(Exception, _internal_problem)  # type: ignore[arg-type]
    edge = Edge(
        bus=bus,
        verifier=sessions,
        revisions=revisions,
        rates=rates,
        metrics=metrics,
        cors=cors,
        max_body_bytes=max_body_bytes,
    )
    return Gateway(ContractRoutes(endpoints(edge)), inner, edge)


async def _http_problem(_request: Request, error: HTTPException) -> Answer:
    """Return the problem of a request that the router refuses, such as one of an unknown path."""
    status = HTTPStatus(error.status_code)
    code = Code.NOT_FOUND if status is HTTPStatus.NOT_FOUND else Code.UNIMPLEMENTED
    reason = "UNKNOWN_PATH" if status is HTTPStatus.NOT_FOUND else status.name
    headers = dict(error.headers or {})
    refused = HttpError(status, code, reason, status.description, headers=headers)
    return problem(refused, trace_id(new_traceparent()))


async def _service_problem(_request: Request, error: ServiceError) -> Answer:
    return problem(error, trace_id(new_traceparent()))


async def _internal_problem(request: Request, error: Exception) -> Answer:
    """Log an unexpected error, and return a problem without its details."""
    trace = trace_id(new_traceparent())
    if not isinstance(error, ClientDisconnect):
        _log.error("request.failed", path=request.url.path, trace_id=trace, exc_info=error)
    return problem(internal(), trace)
