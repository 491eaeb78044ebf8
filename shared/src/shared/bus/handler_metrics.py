"""What a worker counts of its handlers, and tells whoever asks."""

import os
import socket
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
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
"""Seconds; what claims to have waited longer does not say when it was sent."""


class HandlerMetrics:
    """Calls, errors and times of one handler, in buckets."""

    __slots__ = ("begun", "duration", "errors", "seconds", "wait", "waited")

    def __init__(self) -> None:
        self.begun = 0
        self.errors: Counter[str] = Counter()
        self.duration = [0] * (len(_BOUNDS) + 1)
        self.wait = [0] * (len(_BOUNDS) + 1)
        self.seconds = 0.0
        self.waited = 0.0

    def begin(self, sent: float) -> float:
        """Count a call that was sent at `sent` (seconds since the epoch; 0 if that is not known).

        Returns when it began, for `end`.
        """
        self.begun += 1
        waited = max(time.time() - sent, 0.0)
        if waited < _LONGEST_WAIT:
            self.wait[bisect_left(_BOUNDS, waited)] += 1
            self.waited += waited
        return time.perf_counter()

    def end(self, began: float, code: int = 0) -> None:
        """Count its end, with the code of its error if it failed."""
        seconds = time.perf_counter() - began
        self.duration[bisect_left(_BOUNDS, seconds)] += 1
        self.seconds += seconds
        if code:
            self.errors[(Code.try_value(code).name or "UNKNOWN").removeprefix("CODE_")] += 1


class Statistics:
    """What is counted of every handler."""

    def __init__(self) -> None:
        self._handlers: dict[str, HandlerMetrics] = {}

    def of(self, name: str) -> HandlerMetrics:
        """Return what is counted of the handler of a method or event."""
        return self._handlers.setdefault(name, HandlerMetrics())

    def to_messages(self) -> list[HandlerStatistics]:
        """Return all that is counted."""
        return [
            HandlerStatistics(
                name=name,
                calls=sum(counted.duration),
                errors=dict(counted.errors),
                in_flight=counted.begun - sum(counted.duration),
                duration=Histogram(counts=list(counted.duration), sum=counted.seconds),
                wait=Histogram(counts=list(counted.wait), sum=counted.waited),
            )
            for name, counted in self._handlers.items()
            if counted.begun
        ]


class WorkerServiceHandlers:
    """Answers what every worker is asked: whether it is there, what it does and has done."""

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
        """Be there."""
        return PingResponse(instance=self._instance)

    @MessagePattern(WorkerServiceBase.get_statistics)
    async def get_statistics(
        self, _request: GetStatisticsRequest, _context: Context
    ) -> GetStatisticsResponse:
        """Return what was counted."""
        return GetStatisticsResponse(
            instance=self._instance,
            bounds=list(_BOUNDS),
            handlers=self._statistics.to_messages(),
        )

    @MessagePattern(WorkerServiceBase.list_handlers)
    async def list_handlers(
        self, _request: ListHandlersRequest, _context: Context
    ) -> ListHandlersResponse:
        """Return what is served and consumed."""
        return ListHandlersResponse(
            instance=self._instance,
            methods=list(self._methods()),
            events=list(self._events()),
        )
