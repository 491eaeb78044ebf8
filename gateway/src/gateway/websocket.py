"""The WebSocket at /ws: the handshake, and the lifetime of its connections."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from gateway.addresses import address_of, network_of
from gateway.metrics import Metrics
from gateway.problems import HttpError, problem
from gateway.socket_limits import FrameBudget
from gateway.websocket_connection import AUTHENTICATION_BYTES, Connection, Services
from gateway.websocket_protocol import WebSocketProtocol
from shared.errors import Code, ServiceError
from shared.trace import new_traceparent, trace_id

__all__ = ["SOCKET_PATH", "SUBPROTOCOL", "WebSocketEndpoint"]

SOCKET_PATH: Final = "/ws"
SUBPROTOCOL: Final = "postbus.realtime.v1"


class WebSocketEndpoint:
    """Accepts WebSockets: an ASGI application.

    `origin_allowed` decides about the `Origin` of a page that is not the server's own.
    """

    def __init__(
        self, services: Services, metrics: Metrics, origin_allowed: Callable[[str], bool]
    ) -> None:
        self._services = services
        self._metrics = metrics
        self._origin_allowed = origin_allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client until its connection ends."""
        address = address_of(scope)
        network = network_of(address)
        try:
            offered = self._subprotocol(scope)
            self._services.quotas.addresses.take(network)
        except ServiceError as error:
            await problem(error, trace_id(new_traceparent()))(scope, receive, send)
            return
        try:
            with self._metrics.sockets.track_inprogress():
                await receive()  # websocket.connect
                await send({"type": "websocket.accept", "subprotocol": offered})
                await self._serve(scope["state"]["socket"], address)
        finally:
            self._services.quotas.addresses.release(network)

    async def _serve(self, socket: WebSocketProtocol, address: str) -> None:
        connection = Connection(socket, self._services, address=address)
        limits = self._services.limits
        try:
            budget = FrameBudget(limits.frames_per_second, limits.frame_burst)
            socket.start(connection, budget, max_bytes=AUTHENTICATION_BYTES)
            await connection.ended
        finally:
            await connection.close()

    def _subprotocol(self, scope: Scope) -> str | None:
        """Return the subprotocol to choose; HttpError if the handshake is to be refused."""
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and not self._may_connect(origin, headers.get("host", "")):
            raise HttpError(
                HTTPStatus.FORBIDDEN,
                Code.PERMISSION_DENIED,
                "ORIGIN_REFUSED",
                "Pages of this origin may not open WebSockets.",
            )
        offered = scope.get("subprotocols") or []
        if offered and SUBPROTOCOL not in offered:
            raise HttpError(
                HTTPStatus.BAD_REQUEST,
                Code.INVALID_ARGUMENT,
                "SUBPROTOCOL_UNKNOWN",
                f"The subprotocol is {SUBPROTOCOL}.",
            )
        return SUBPROTOCOL if offered else None

    def _may_connect(self, origin: str, host: str) -> bool:
        """Return whether a page may connect; the scheme is unknown behind a proxy."""
        own = (f"http://{host}".lower(), f"https://{host}".lower())
        return origin.lower() in own or self._origin_allowed(origin)
