"""Whether the system is ready, and which part is missing."""

import asyncio
from typing import Final

from gateway.recent import Recent
from postbus.bus.v1 import CheckRequest, HealthServiceStub
from postbus.registry import METHODS
from shared.bus import MessageBus, ServiceChannel
from shared.bus.handler_matching import EVERY_WORKER
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
        self._workers = sorted({method.worker for method in METHODS.values()} - {EVERY_WORKER})
        self._parts = Recent(self._check, seconds=_FRESH_SECONDS)

    async def parts(self) -> dict[str, bool]:
        """Return whether each part is ready, within a second."""
        return await self._parts.get()

    async def _check(self) -> dict[str, bool]:
        parts = {"rabbitmq": self._bus.ready, "gateway.sessions": self._sessions.ready}
        for answer in await asyncio.gather(*map(self._worker, self._workers)):
            parts |= answer
        return parts

    async def _worker(self, worker: str) -> dict[str, bool]:
        channel = ServiceChannel(self._bus, worker=worker)
        try:
            stub = HealthServiceStub(channel)
            answer = await stub.check(CheckRequest())
        except ServiceError:
            return {worker: False}
        return {worker: True} | {f"{worker}.{part.name}": part.ready for part in answer.parts}
