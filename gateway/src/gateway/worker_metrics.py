"""Metrics of all workers, collected over the bus, security events and incidents of the bus."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from shared.bus import Call, MessageBus
from shared.bus.handler_matching import WORKERS
from shared.errors import ServiceError
from shared.wire import parse

__all__ = ["WorkerMetrics"]

_SECONDS: Final = 0.25
"""Time for the replies of the workers."""
_MAX_HANDLERS: Final = 5000
"""Handlers of all processes of a worker, at about 50 us each. Further processes are missing."""
_ROUTE: Final = "postbus.bus.v1.WorkerService.GetStatistics"
_RESPONSE: Final = "postbus.bus.v1.GetStatisticsResponse"
_LABELS: Final = ("worker", "instance", "handler")


class WorkerMetrics:
    """The statistics of every process of every worker.

    `security_events` are those of this gateway, by name.
    """

    def __init__(self, bus: MessageBus, security_events: Mapping[str, int]) -> None:
        self._bus = bus
        self._security_events = security_events

    async def collect(self) -> CollectorRegistry:
        """Collect the statistics of all processes; one that does not reply in time is missing."""
        found = await asyncio.gather(*map(self._collect_worker, WORKERS))
        registry = CollectorRegistry()
        processes = [each for worker in found for each in worker]
        registry.register(_Statistics(processes, self._security_events, self._bus.incidents))
        return registry

    async def _collect_worker(self, worker: str) -> list[Any]:
        """Return the consistent statistics of the processes of a worker, each once."""
        call, found, handlers = Call.new(b"", budget=_SECONDS), dict[str, Any](), 0
        with suppress(ServiceError):
            for payload in await self._bus.broadcast(f"{_ROUTE}.{worker}", call):
                with suppress(ServiceError):  # that of one process must not hide the others
                    process: Any = parse(_RESPONSE, payload)
                    process.instance.worker = worker  # not the name of another service
                    handlers += len(process.handlers)
                    if handlers <= _MAX_HANDLERS and _is_consistent(process):
                        found.setdefault(process.instance.id, process)
        return list(found.values())


class _Statistics:
    """Converts statistics to metrics; a Collector of prometheus_client."""

    def __init__(
        self,
        processes: Iterable[Any],
        security_events: Mapping[str, int],
        incidents: Mapping[str, int],
    ) -> None:
        self._processes = processes
        self._security_events = security_events
        self._incidents = incidents

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
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
        security = CounterMetricFamily(
            "postbus_security_events", "Security events.", labels=(*_LABELS[:2], "event")
        )
        incidents = CounterMetricFamily(
            "postbus_bus_incidents",
            "Incidents of the bus.",
            labels=(*_LABELS[:2], "incident"),
        )
        for event, count in self._security_events.items():
            security.add_metric(("gateway", "", event), count)
        for incident, count in self._incidents.items():
            incidents.add_metric(("gateway", "", incident), count)
        for process in self._processes:
            instance = (process.instance.worker, process.instance.id)
            started = process.instance.started_at
            up.add_metric(instance, started.seconds + started.nanos / 1_000_000_000)
            for event, count in process.security_events.items():
                security.add_metric((*instance, event), count)
            for incident, count in process.incidents.items():
                incidents.add_metric((*instance, incident), count)
            for handler in process.handlers:
                labels = (*instance, handler.name)
                in_flight.add_metric(labels, handler.in_flight)
                for code, count in handler.errors.items():
                    errors.add_metric((*labels, code), count)
                for family, histogram in ((seconds, handler.duration), (wait, handler.wait)):
                    buckets = _buckets(process.bounds, histogram)
                    family.add_metric(labels, buckets, histogram.sum)
        yield from (up, errors, in_flight, seconds, wait, security, incidents)


def _is_consistent(process: Any) -> bool:
    """Return whether each histogram has a count for each bucket."""
    histograms = (each for handler in process.handlers for each in (handler.duration, handler.wait))
    return all(len(each.counts) == len(process.bounds) + 1 for each in histograms)


def _buckets(bounds: Iterable[float], histogram: Any) -> list[tuple[str, float]]:
    """Return the cumulative buckets of Prometheus."""
    names = [*map(str, bounds), "+Inf"]
    return [(name, float(n)) for name, n in zip(names, accumulate(histogram.counts), strict=True)]
