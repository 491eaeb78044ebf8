"""Whether the system is ready, and which part is missing."""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse

from postbus.bus.v1 import CheckRequest, HealthServiceStub
from postbus.registry import METHODS
from shared.errors import ServiceError
from shared.messagebus import MessageBus, ServiceChannel
from shared.messagebus.handlers import EVERY_WORKER
from shared.revocations import SessionVerifier

__all__ = ["Health"]


class Health:
    """Liveness of this process and readiness of the whole system."""

    def __init__(self, bus: MessageBus, sessions: SessionVerifier) -> None:
        self._bus = bus
        self._sessions = sessions
        self._workers = sorted({method.worker for method in METHODS.values()} - {EVERY_WORKER})

    async def live(self, _request: Request) -> JSONResponse:
        """Answer GET /healthz: this process runs."""
        return JSONResponse({"alive": True})

    async def ready(self, _request: Request) -> JSONResponse:
        """Answer GET /readyz: 200 if every part is ready, else 503; at once, or within a second."""
        parts = {"rabbitmq": self._bus.ready, "gateway.sessions": self._sessions.ready}
        for answer in await asyncio.gather(*map(self._worker, self._workers)):
            parts |= answer
        ready = all(parts.values())
        return JSONResponse({"ready": ready, "parts": parts}, 200 if ready else 503)

    async def _worker(self, worker: str) -> dict[str, bool]:
        channel = ServiceChannel(self._bus, worker=worker)
        try:
            stub = HealthServiceStub(channel)
            answer = await stub.check(CheckRequest())
        except ServiceError:
            return {worker: False}
        return {worker: True} | {f"{worker}.{part.name}": part.ready for part in answer.parts}
