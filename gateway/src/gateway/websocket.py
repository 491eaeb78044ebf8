"""The WebSocket at /ws: handshakes, and the lifetime of connections."""

from functools import partial
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.client_addresses import address_of, network_of
from gateway.problems import HttpError, problem
from gateway.services import Services
from gateway.socket_limits import FrameBudget
from gateway.websocket_connection import AUTHENTICATION_BYTES, WebSocketConnection
from gateway.websocket_protocol import WebSocketProtocol
from postbus import reasons
from shared.errors import ServiceError
from shared.trace import new_traceparent, trace_id

__all__ = ["SOCKET_PATH", "WebSocketEndpoint", "upgrade_required"]

SOCKET_PATH: Final = "/ws"
SUBPROTOCOL: Final = "postbus.realtime.v1"


class WebSocketEndpoint:
    """Accepts WebSockets of the server's own pages and of allowed origins; an ASGI application."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client until its connection ends."""
        address = address_of(scope)
        network = network_of(address)
        try:
            offered = self._subprotocol(scope)
            self._services.socket_quotas.addresses.take(network)
        except ServiceError as error:
            await problem(error, trace_id(new_traceparent()))(scope, receive, send)
            return
        try:
            with self._services.metrics.sockets.track_inprogress():
                await receive()  # websocket.connect
                await send({"type": "websocket.accept", "subprotocol": offered})
                await self._serve(scope["state"]["socket"], address)
        finally:
            self._services.socket_quotas.addresses.release(network)

    async def _serve(self, socket: WebSocketProtocol, address: str) -> None:
        limits = self._services.socket_limits
        shared = self._services.frame_budgets.of_address(network_of(address))
        budget = FrameBudget(limits.frames_per_second, limits.frame_burst, shared)
        connection = WebSocketConnection(socket, self._services, budget, address=address)
        try:
            socket.start(
                connection,
                budget,
                max_bytes=AUTHENTICATION_BYTES,
                count_unfinished=partial(self._services.unfinished.change, network_of(address)),
            )
            await connection.ended
        finally:
            await connection.close()

    def _subprotocol(self, scope: Scope) -> str | None:
        """Return the subprotocol of a handshake; HttpError if origin or subprotocol is refused."""
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and not self._may_connect(origin, headers.get("host", "")):
            raise HttpError(
                reasons.ORIGIN_REFUSED,
                "Pages of this origin may not open WebSockets.",
            )
        offered = scope.get("subprotocols") or []
        if offered and SUBPROTOCOL not in offered:
            raise HttpError(
                reasons.SUBPROTOCOL_UNKNOWN,
                f"The supported subprotocol is {SUBPROTOCOL}.",
            )
        return SUBPROTOCOL if offered else None

    def _may_connect(self, origin: str, host: str) -> bool:
        """Return whether a page may connect; behind a proxy, the scheme is unknown."""
        own = (f"http://{host}".lower(), f"https://{host}".lower())
        return origin.lower() in own or self._services.cors.origin_allowed(origin)


async def upgrade_required(_request: Request) -> Response:
    """Refuse a request for /ws that is no WebSocket handshake (RFC 9110, section 15.5.22)."""
    raise HttpError(
        reasons.UPGRADE_REQUIRED,
        "Connect with a WebSocket.",
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
    )
