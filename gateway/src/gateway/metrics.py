"""Request metrics, for Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.worker_metrics import WorkerMetrics
from shared.messagebus import MessageBus

__all__ = ["Metrics", "RequestMetrics"]


class Metrics:
    """What is counted, in a registry of its own: two gateways in one process don't meet."""

    def __init__(self, bus: MessageBus) -> None:
        self._workers = WorkerMetrics(bus)
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "postbus_http_requests",
            "HTTP requests answered.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "postbus_http_request_seconds",
            "Time to answer an HTTP request.",
            ("route", "method"),
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "postbus_http_requests_in_flight",
            "HTTP requests being answered.",
            registry=self._registry,
        )
        self.sockets = Gauge("postbus_websockets_open", "Open WebSockets.", registry=self._registry)

    async def expose(self, _request: Request) -> Response:
        """Answer GET /metrics: of this gateway, and of all workers, which expose no port."""
        text = generate_latest(self._registry) + generate_latest(await self._workers.collect())
        return Response(text, media_type=CONTENT_TYPE_LATEST)


class RequestMetrics:
    """ASGI middleware that counts and times each HTTP request under its route's template.

    Paths of no route count as `none`: what an outsider makes up never becomes a label.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = "none"

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        scope.setdefault("state", {})
        began = time.perf_counter()
        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, note_status)
            finally:
                labels = (scope["state"].get("route", "none"), _known(scope["method"]))
                self._metrics.seconds.labels(*labels).observe(time.perf_counter() - began)
                self._metrics.requests.labels(*labels, status).inc()


def _known(method: str) -> str:
    return method if method in {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"} else "other"
