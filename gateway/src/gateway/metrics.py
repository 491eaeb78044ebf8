"""HTTP request metrics for Prometheus, and the collected metrics of all workers."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from gateway.cached_result import CachedResult
from gateway.worker_metrics import WorkerMetrics
from shared.bus import MessageBus

__all__ = ["Metrics"]

_BOUNDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    float("inf"),
)
"""Upper bounds of the buckets, in seconds: the default of prometheus_client."""
_FRESH_SECONDS: Final = 1.0
"""Scrapes within this time share one result, because each scrape calls every worker."""
_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class RouteMetrics:
    """The requests of one route and verb.

    Plain numbers that are read at each scrape: a metric of prometheus_client takes several locks
    and about ten function calls for each request.
    """

    __slots__ = ("begun", "buckets", "seconds", "statuses")

    def __init__(self) -> None:
        self.begun = 0
        self.buckets = [0] * len(_BOUNDS)
        self.seconds = 0.0
        self.statuses: Counter[int] = Counter()

    def end(self, status: int, seconds: float) -> None:
        """Count a response after `seconds`; status 0 if the client disconnected before it."""
        self.buckets[bisect_left(_BOUNDS, seconds)] += 1
        self.seconds += seconds
        self.statuses[status] += 1


class Metrics:
    """The metrics of this gateway, in its own registry, and of all workers."""

    def __init__(self, bus: MessageBus, security_events: Mapping[str, int]) -> None:
        self._workers = WorkerMetrics(bus, security_events)
        self._registry = CollectorRegistry()
        self._routes: dict[tuple[str, str], RouteMetrics] = {}
        self._registry.register(self)
        self._text = CachedResult(self._generate, seconds=_FRESH_SECONDS)
        self.sockets = Gauge("postbus_websockets_open", "Open WebSockets.", registry=self._registry)

    def of(self, route: str, verb: str) -> RouteMetrics:
        """Return the metrics of a path template and a verb; unknown verbs share one label."""
        key = (route, verb if verb in _METHODS else "other")
        return self._routes.setdefault(key, RouteMetrics())

    async def text(self) -> bytes:
        """Return all metrics in Prometheus's format, at most a second old."""
        return await self._text.get()

    async def _generate(self) -> bytes:
        return generate_latest(self._registry) + generate_latest(await self._workers.collect())

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics (Collector of prometheus_client)."""
        labels = ("route", "method")
        requests = CounterMetricFamily(
            "postbus_http_requests", "HTTP requests with a response.", labels=(*labels, "status")
        )
        seconds = HistogramMetricFamily(
            "postbus_http_request_seconds",
            "Time from an HTTP request to the end of its response.",
            labels=labels,
        )
        running = 0
        for key, route in self._routes.items():
            if not route.begun:
                continue
            for status, count in route.statuses.items():
                requests.add_metric((*key, str(status or "none")), count)
            seconds.add_metric(key, _cumulative(route.buckets), route.seconds)
            running += route.begun - sum(route.buckets)
        in_flight = GaugeMetricFamily(
            "postbus_http_requests_in_flight",
            "HTTP requests without a complete response.",
            value=running,
        )
        yield from (requests, seconds, in_flight)


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    names = [*map(str, _BOUNDS[:-1]), "+Inf"]
    return [(name, float(n)) for name, n in zip(names, accumulate(counts), strict=True)]
