"""Routes for operators: /healthz, /readyz and /metrics; and security.txt."""

from datetime import UTC, datetime, timedelta
from typing import Final

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gateway.health import Health
from gateway.metrics import Metrics
from gateway.operator_networks import OperatorNetworks

__all__ = ["OperatorRoutes", "security_txt_routes"]

_SECURITY_TXT_DAYS: Final = 90
"""RFC 9116, section 2.5.5, recommends less than a year."""


class OperatorRoutes:
    """Serves /healthz, /readyz and /metrics."""

    def __init__(self, health: Health, metrics: Metrics, operators: OperatorNetworks) -> None:
        self._health = health
        self._metrics = metrics
        self._operators = operators

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/healthz", self._live),
            Route("/readyz", self._ready),
            Route("/metrics", self._expose),
        ]

    async def _live(self, _request: Request) -> Response:
        return JSONResponse({"alive": True})

    async def _ready(self, request: Request) -> Response:
        """Return 200 if every part is ready, else 503.

        Operators get the state of each part, the messages of those that are not ready, and the
        warnings of those that are.
        """
        parts = await self._health.parts()
        ready = all(part.ready for part in parts)
        body: dict[str, object] = {"ready": ready}
        if self._operators.include(request.scope):
            body["parts"] = {part.name: part.ready for part in parts}
            for key, with_ready in (("missing", False), ("warnings", True)):
                found = [part for part in parts if part.ready is with_ready and part.message]
                body[key] = {part.name: part.message for part in found}
        return JSONResponse(body, 200 if ready else 503)

    async def _expose(self, request: Request) -> Response:
        self._operators.require(request.scope)
        return Response(await self._metrics.text(), media_type=CONTENT_TYPE_LATEST)


def security_txt_routes(contact: str) -> list[Route]:
    """Return the route of security.txt (RFC 9116); none without a contact, which is a URI."""

    async def security_txt(_request: Request) -> Response:
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        expires = midnight + timedelta(days=_SECURITY_TXT_DAYS)
        return PlainTextResponse(f"Contact: {contact}\nExpires: {expires:%Y-%m-%dT%H:%M:%SZ}\n")

    return [Route("/.well-known/security.txt", security_txt)] if contact else []
