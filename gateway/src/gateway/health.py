"""Readiness of the system and of its parts."""

import asyncio
from typing import Final

from gateway.cached_result import CachedResult
from postbus.bus.v1 import CheckRequest, HealthServiceStub
from shared.bus import MessageBus, ServiceChannel
from shared.bus.handler_matching import WORKERS
from shared.errors import ServiceError
from shared.runtime.session_verifier import SessionVerifier

__all__ = ["Health"]

_FRESH_SECONDS: Final = 0.2
"""Checks within this time share one result: each calls every worker."""


class Health:
    """Readiness of the whole system."""

    def __init__(self, bus: MessageBus, sessions: SessionVerifier) -> None:
        self._bus = bus
        self._sessions = sessions
        self._parts = CachedResult(self._check, seconds=_FRESH_SECONDS)

    async def parts(self) -> dict[str, bool]:
        """Return whether each part is ready; takes one second at most."""
        return await self._parts.get()

    async def _check(self) -> dict[str, bool]:
        parts = {"rabbitmq": self._bus.ready, "gateway.sessions": self._sessions.ready}
        for worker_parts in await asyncio.gather(*map(self._check_worker, WORKERS)):
            parts |= worker_parts
        return parts

    async def _check_worker(self, worker: str) -> dict[str, bool]:
        channel = ServiceChannel(self._bus, worker=worker)
        try:
            stub = HealthServiceStub(channel)
            response = await stub.check(CheckRequest())
        except ServiceError:
            return {worker: False}
        return {worker: True} | {f"{worker}.{part.name}": part.ready for part in response.parts}
