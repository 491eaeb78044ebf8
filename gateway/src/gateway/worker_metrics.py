"""What the workers count, asked for over the bus, for Prometheus."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from postbus.bus.v1 import GetStatisticsRequest, GetStatisticsResponse, Histogram
from postbus.registry import METHODS
from shared.bus import Call, MessageBus
from shared.bus.handler_matching import EVERY_WORKER
from shared.errors import ServiceError
from shared.wire import decode, encode

__all__ = ["WorkerMetrics"]

_SECONDS: Final = 0.25
"""How long workers have to answer."""
_ROUTE: Final = "postbus.bus.v1.WorkerService.GetStatistics"
_LABELS: Final = ("worker", "instance", "handler")


class WorkerMetrics:
    """The statistics of every process of every worker."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._workers = sorted({method.worker for method in METHODS.values()} - {EVERY_WORKER})

    async def collect(self) -> CollectorRegistry:
        """Ask all; who does not answer in time is not there, which the metrics show."""
        answers = await asyncio.gather(*map(self._ask, self._workers))
        registry = CollectorRegistry()
        registry.register(_Answers([each for answer in answers for each in answer]))
        return registry

    async def _ask(self, worker: str) -> list[GetStatisticsResponse]:
        call = Call.new(encode(GetStatisticsRequest()), deadline=time.time() + _SECONDS)
        try:
            payloads = await self._bus.broadcast(f"{_ROUTE}.{worker}", call)
            return [decode(GetStatisticsResponse, payload) for payload in payloads]
        except ServiceError:
            return []


class _Answers:
    def __init__(self, answers: Iterable[GetStatisticsResponse]) -> None:
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's Collector."""
        up = GaugeMetricFamily(
            "postbus_worker_start_time_seconds", "When the process started.", labels=_LABELS[:2]
        )
        errors = CounterMetricFamily(
            "postbus_handler_errors", "Failures of handlers.", labels=(*_LABELS, "code")
        )
        in_flight = GaugeMetricFamily(
            "postbus_handler_in_flight", "Handlers that run.", labels=_LABELS
        )
        seconds = HistogramMetricFamily(
            "postbus_handler_seconds", "How long handlers ran.", labels=_LABELS
        )
        wait = HistogramMetricFamily(
            "postbus_handler_wait_seconds",
            "How long calls and events waited for their handler.",
            labels=_LABELS,
        )
        for answer in self._answers:
            instance = (answer.instance.worker, answer.instance.id)
            up.add_metric(instance, answer.instance.started_at.timestamp())
            for handler in answer.handlers:
                labels = (*instance, handler.name)
                in_flight.add_metric(labels, handler.in_flight)
                for code, count in handler.errors.items():
                    errors.add_metric((*labels, code), count)
                for family, histogram in ((seconds, handler.duration), (wait, handler.wait)):
                    buckets = _buckets(answer.bounds, histogram)
                    family.add_metric(labels, buckets, histogram.sum)
        yield from (up, errors, in_flight, seconds, wait)


def _buckets(bounds: Iterable[float], histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus has them."""
    names = [*map(str, bounds), "+Inf"]
    return [(name, float(n)) for name, n in zip(names, accumulate(histogram.counts), strict=True)]
