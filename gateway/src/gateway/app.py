"""The gateway as an ASGI application.

The contract's routes are served by `gateway.endpoint`. FastAPI serves only the documentation, the
routes for operators, the WebSocket's handshake and the lifespan.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route, WebSocketRoute

from gateway.client_addresses import address_of
from gateway.connect_endpoint import connect_endpoints
from gateway.documentation_routes import documentation_routes
from gateway.endpoint import Endpoint
from gateway.gateway import Gateway
from gateway.health import Health
from gateway.operator_networks import Network, OperatorNetworks
from gateway.operator_routes import OperatorRoutes, security_txt_routes
from gateway.problems import HttpError, problem
from gateway.rate_limits import RateLimits
from gateway.responses import HttpResponse
from gateway.rest_endpoint import rest_endpoints
from gateway.routing import ContractRoutes
from gateway.services import Services
from gateway.settings import LOOPBACK
from gateway.socket_limits import SocketLimits
from gateway.unfinished_input import UnfinishedInput
from gateway.websocket import SOCKET_PATH, WebSocketEndpoint, upgrade_required
from postbus import reasons
from shared.access_tokens import TokenVerifier
from shared.bus import MessageBus
from shared.errors import ServiceError, internal
from shared.trace import new_traceparent, trace_id

__all__ = ["build_app"]

_log = structlog.get_logger()


def build_app(
    bus: MessageBus,
    verifier: TokenVerifier,
    *,
    max_body_bytes: int,
    rates: RateLimits | None = None,
    sockets: SocketLimits = SocketLimits(),  # noqa: B008  # frozen
    unfinished: UnfinishedInput | None = None,
    allowed_origins: tuple[str, ...] = (),
    metadata_headers: tuple[str, ...] = (),
    operator_networks: tuple[Network, ...] = LOOPBACK,
    security_contact_uri: str = "",
    start_seconds: float = 0,
) -> Gateway:
    """Return the gateway, which calls over `bus` and consumes its events during the lifespan.

    The lifespan begins once the events are consumed, or at the latest after `start_seconds`.
    Without `rates`, only methods with a `rate_limit` in the contract have a limit.
    """
    services = Services.create(
        bus,
        verifier,
        max_body_bytes=max_body_bytes,
        rates=rates,
        socket_limits=sockets,
        unfinished=unfinished,
        allowed_origins=allowed_origins,
        metadata_headers=metadata_headers,
    )
    inner = _inner_app(services, start_seconds)
    health = Health(bus, services.verifier)
    operators = OperatorRoutes(health, services.metrics, OperatorNetworks(operator_networks))
    inner.router.routes.extend(
        [
            *documentation_routes(),
            *security_txt_routes(security_contact_uri),
            WebSocketRoute(SOCKET_PATH, WebSocketEndpoint(services)),
            Route(SOCKET_PATH, upgrade_required),
            *operators.routes(),
        ]
    )
    routes = ContractRoutes[Endpoint]({**rest_endpoints(services), **connect_endpoints(services)})
    return Gateway(routes, inner, services)


def _inner_app(services: Services, start_seconds: float) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        subscribing = services.subscribe()  # may wait for the broker
        await asyncio.wait((subscribing,), timeout=start_seconds)
        yield
        subscribing.cancel()
        with suppress(asyncio.CancelledError):
            await subscribing

    inner = FastAPI(
        title="Postbus",
        lifespan=lifespan,
        openapi_url=None,  # the generated document is published, with a /docs of its own
        redirect_slashes=False,
    )
    inner.add_exception_handler(HTTPException, _http_problem)  # type: ignore[arg-type]
    inner.add_exception_handler(ServiceError, _service_problem(services))  # type: ignore[arg-type]
    inner.add_exception_handler(Exception, _internal_problem)  # type: ignore[arg-type]
    return inner


async def _http_problem(_request: Request, error: HTTPException) -> HttpResponse:
    """Return the problem of a request that the router refuses, such as one with an unknown path."""
    status = HTTPStatus(error.status_code)
    known = status is HTTPStatus.METHOD_NOT_ALLOWED
    reason = reasons.METHOD_NOT_ALLOWED if known else reasons.UNKNOWN_PATH
    refused = HttpError(reason, status.description, headers=dict(error.headers or {}))
    return problem(refused, trace_id(new_traceparent()))


def _service_problem(
    services: Services,
) -> Callable[[Request, ServiceError], Awaitable[HttpResponse]]:
    """Return the handler of refused requests to routes that are not in the contract."""

    async def handle(request: Request, error: ServiceError) -> HttpResponse:
        trace, address = trace_id(new_traceparent()), address_of(request.scope)
        services.security_log.record_refusal(error, address=address, trace_id=trace)
        return problem(error, trace)

    return handle


async def _internal_problem(request: Request, error: Exception) -> HttpResponse:
    """Log an unexpected error, and return a problem without its details."""
    trace = trace_id(new_traceparent())
    if not isinstance(error, ClientDisconnect):
        _log.error("request.failed", path=request.url.path, trace_id=trace, exc_info=error)
    return problem(internal(), trace)
