"""Metrics of a worker's handlers, and the rpcs that return them."""

import os
import socket
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from postbus.bus.v1 import (
    Code,
    GetStatisticsRequest,
    GetStatisticsResponse,
    HandlerStatistics,
    Histogram,
    Instance,
    ListHandlersRequest,
    ListHandlersResponse,
    PingRequest,
    PingResponse,
    WorkerServiceBase,
)
from shared.bus.decorators import MessagePattern
from shared.context import Context

__all__ = ["HandlerMetrics", "Statistics", "WorkerServiceHandlers"]

_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONGEST_WAIT: Final = 3600.0
"""Seconds; a longer wait means that the time of sending is unknown."""


class HandlerMetrics:
    """Number of calls, errors, and histograms of the times of one handler."""

    __slots__ = ("begun", "duration", "errors", "seconds", "wait", "waited")

    def __init__(self) -> None:
        self.begun = 0
        self.errors: Counter[str] = Counter()
        self.duration = [0] * (len(_BOUNDS) + 1)
        self.wait = [0] * (len(_BOUNDS) + 1)
        self.seconds = 0.0
        self.waited = 0.0

    def begin(self, sent: float) -> float:
        """Count a call that was sent at `sent`, in seconds since the epoch; 0 if unknown.

        Returns the time of its begin, for `end`.
        """
        self.begun += 1
        waited = max(time.time() - sent, 0.0)
        if waited < _LONGEST_WAIT:
            self.wait[bisect_left(_BOUNDS, waited)] += 1
            self.waited += waited
        return time.perf_counter()

    def end(self, began: float, code: int = 0) -> None:
        """Count the end of a call; `code` is that of its error, 0 without one."""
        seconds = time.perf_counter() - began
        self.duration[bisect_left(_BOUNDS, seconds)] += 1
        self.seconds += seconds
        if code:
            self.errors[(Code.try_value(code).name or "UNKNOWN").removeprefix("CODE_")] += 1


class Statistics:
    """The metrics of all handlers of a worker, by method or event.

    `security_events` are the numbers of security events by name, `incidents` those of the
    incidents of the bus.
    """

    def __init__(self, security_events: Mapping[str, int], incidents: Mapping[str, int]) -> None:
        self.security_events = security_events
        self.incidents = incidents
        self._handlers: dict[str, HandlerMetrics] = {}

    def of(self, name: str) -> HandlerMetrics:
        """Return the metrics of the handler of a method or event."""
        return self._handlers.setdefault(name, HandlerMetrics())

    def to_messages(self) -> list[HandlerStatistics]:
        """Return the metrics of the handlers that were called."""
        return [
            HandlerStatistics(
                name=name,
                calls=sum(metrics.duration),
                errors=dict(metrics.errors),
                in_flight=metrics.begun - sum(metrics.duration),
                duration=Histogram(counts=list(metrics.duration), sum=metrics.seconds),
                wait=Histogram(counts=list(metrics.wait), sum=metrics.waited),
            )
            for name, metrics in self._handlers.items()
            if metrics.begun
        ]


class WorkerServiceHandlers:
    """The handlers of WorkerService, which every worker serves."""

    def __init__(
        self,
        worker: str,
        statistics: Statistics,
        methods: Callable[[], Sequence[str]],
        events: Callable[[], Sequence[str]],
    ) -> None:
        id_ = f"{socket.gethostname()}:{os.getpid()}"
        self._instance = Instance(worker=worker, id=id_, started_at=datetime.now(UTC))
        self._statistics = statistics
        self._methods = methods
        self._events = events

    @MessagePattern(WorkerServiceBase.ping)
    async def ping(self, _request: PingRequest, _context: Context) -> PingResponse:
        """Return an empty response, to show that the process is alive."""
        return PingResponse(instance=self._instance)

    @MessagePattern(WorkerServiceBase.get_statistics)
    async def get_statistics(
        self, _request: GetStatisticsRequest, _context: Context
    ) -> GetStatisticsResponse:
        """Return the metrics of this process."""
        return GetStatisticsResponse(
            instance=self._instance,
            bounds=list(_BOUNDS),
            handlers=self._statistics.to_messages(),
            security_events=dict(self._statistics.security_events),
            incidents=dict(self._statistics.incidents),
        )

    @MessagePattern(WorkerServiceBase.list_handlers)
    async def list_handlers(
        self, _request: ListHandlersRequest, _context: Context
    ) -> ListHandlersResponse:
        """Return the methods that are served and the events that are consumed."""
        return ListHandlersResponse(
            instance=self._instance,
            methods=list(self._methods()),
            events=list(self._events()),
        )
