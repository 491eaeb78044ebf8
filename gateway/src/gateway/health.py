"""Readiness of the system and of its parts."""

import asyncio
import logging
import time
from typing import Any, Final

from gateway.cached_result import CachedResult
from postbus.bus.v1 import Part
from postbus.registry import METHODS
from shared.access_tokens import LEEWAY_SECONDS
from shared.bus import Call, MessageBus, call_method
from shared.bus.handler_matching import WORKERS
from shared.errors import ServiceError
from shared.limited_log import LimitedLog
from shared.runtime.session_verifier import SessionVerifier
from shared.wire import parse

__all__ = ["Health"]

_FRESH_SECONDS: Final = 0.2
"""Checks within this time share one result: each calls every worker."""
_SKEW_LOG_SECONDS: Final = 60.0
"""Shortest time between two log lines about the clock of one worker."""
_MAX_RESPONSE: Final = 64 * 2**10
"""Bytes of the response of a worker."""
_MAX_PARTS: Final = 50
"""Dependencies of a worker that are shown."""
_CHECK: Final = METHODS["postbus.bus.v1.HealthService.Check"]


class Health:
    """Readiness of the whole system."""

    def __init__(self, bus: MessageBus, sessions: SessionVerifier) -> None:
        self._bus = bus
        self._sessions = sessions
        self._log = LimitedLog(seconds=_SKEW_LOG_SECONDS)
        self._parts = CachedResult(self._check, seconds=_FRESH_SECONDS)

    async def parts(self) -> list[Part]:
        """Return every part of the system; takes one second at most."""
        return await self._parts.get()

    async def _check(self) -> list[Part]:
        parts = [
            _part("rabbitmq", self._bus.ready, "The gateway is not connected to RabbitMQ."),
            _part("gateway.sessions", self._sessions.ready, "The revocations are not read yet."),
        ]
        if warning := self._bus.warning:
            parts.append(Part(name="gateway.calls", ready=True, message=warning))
        for worker_parts in await asyncio.gather(*map(self._check_worker, WORKERS)):
            parts += worker_parts
        return parts

    async def _check_worker(self, worker: str) -> list[Part]:
        call, sent = Call.new(b"", budget=_CHECK.timeout), time.time()
        try:
            result = await call_method(self._bus, _CHECK, call, f"{_CHECK.name}.{worker}")
            if len(result.payload) > _MAX_RESPONSE:
                return [_part(worker, False, "The response of the worker is too large.")]
            response: Any = parse(_CHECK.response_name, result.payload)  # any worker's times
        except ServiceError as error:
            return [_part(worker, False, f"The worker does not respond: {error.reason}.")]
        if response.HasField("time"):
            worker_time = response.time.seconds + response.time.nanos / 1_000_000_000
            self._log_skew(worker, worker_time - (sent + time.time()) / 2)
        dependencies = [
            Part(name=f"{worker}.{part.name}", ready=part.ready, message=part.message)
            for part in response.parts[:_MAX_PARTS]
        ]
        return [Part(name=worker, ready=True), *dependencies]

    def _log_skew(self, worker: str, seconds: float) -> None:
        """Log a difference between the clocks of worker and gateway: tokens depend on them."""
        if abs(seconds) > LEEWAY_SECONDS:
            self._log.write(
                logging.WARNING, "clock.skew", key=worker, process=worker, seconds=round(seconds, 1)
            )


def _part(name: str, ready: bool, message: str) -> Part:
    return Part(name=name, ready=ready, message="" if ready else message)
