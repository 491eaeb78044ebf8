"""The runtime of a worker: connect, serve, tell of its health, stop cleanly."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass

import structlog
import uvloop

from postbus.bus.v1 import CheckRequest, CheckResponse, HealthServiceBase, Part
from shared.bus import Dispatcher, MessageBus, MessagePattern, Subscription
from shared.bus.amqp import connect
from shared.context import Context
from shared.identity import TokenVerifier
from shared.outbox.relay import flush, relay
from shared.outbox.unit_of_work import Store, without_store
from shared.runtime import gc_tuning
from shared.runtime.logs import configure_logs
from shared.runtime.session_verifier import SessionVerifier
from shared.runtime.settings import ServiceSettings

__all__ = ["Application", "Health", "Probe", "run_worker", "serve"]

_log = structlog.get_logger()
_PROBE_TIMEOUT = 0.5

Probe = Callable[[], Awaitable[None]]
"""Returns if a part that the worker needs answers, and raises if not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """What a worker is made of."""

    handlers: Iterable[object]
    probes: Mapping[str, Probe]
    store: Store | None = None
    """The database that keeps units of work whole; without one, no operation is remembered."""


class Health:
    """Answers for a worker: `probes` by the name of the part."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = probes

    @MessagePattern(HealthServiceBase.check)
    async def check(self, _request: CheckRequest, _context: Context) -> CheckResponse:
        """Ask every part at once."""
        answers = await asyncio.gather(*(_answers(probe) for probe in self._probes.values()))
        parts = zip(self._probes, answers, strict=True)
        return CheckResponse(parts=[Part(name=name, ready=ready) for name, ready in parts])


async def _answers(probe: Probe) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT):
            await probe()
    except Exception:  # noqa: BLE001  # whatever a driver raises, the part is not ready
        return False
    return True


@asynccontextmanager
async def serve(
    name: str, application: Application, bus: MessageBus, verifier: TokenVerifier
) -> AsyncIterator[None]:
    """Serve `application` on `bus` as worker `name`; at the end, finish what has begun.

    Raises ContractMismatchError if its handlers are not those of the contract. Revocations of
    sessions are read before calls are served; if they cannot be, calls with a token are refused.
    """
    sessions = SessionVerifier(bus, verifier)
    probes = {**application.probes, "sessions": sessions.require_ready}
    handlers = [*application.handlers, Health(probes)]
    store = application.store
    perform = store.perform if store else without_store(bus.publish)
    dispatcher = Dispatcher(name, handlers, sessions, perform)
    subscriptions: list[Subscription] = []
    relaying = asyncio.create_task(relay(store, bus.publish_encoded)) if store else None
    try:
        subscriptions.append(await sessions.run())
        for event in dispatcher.events:
            queue = f"{name}.{event}"
            subscriptions.append(await bus.subscribe([event], dispatcher.consume, queue=queue))
        subscriptions.append(await bus.serve(name, dispatcher.routes, dispatcher.answer))
        yield
    finally:
        await asyncio.gather(*(subscription.cancel() for subscription in subscriptions))
        if store and relaying:
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
            await flush(store, bus.publish_encoded)


def run_worker(
    name: str,
    settings: ServiceSettings,
    application: Callable[[MessageBus], AbstractAsyncContextManager[Application]],
) -> None:
    """Run the worker `name` until SIGTERM or SIGINT; `application` opens what it needs."""
    configure_logs(name, settings.log_format)
    uvloop.run(_run(name, settings, application))


async def _run(
    name: str,
    settings: ServiceSettings,
    application: Callable[[MessageBus], AbstractAsyncContextManager[Application]],
) -> None:
    _cancel_on_signals()
    verifier = TokenVerifier(settings.verification_keys)
    with suppress(asyncio.CancelledError):
        async with (
            connect(settings.amqp_url, name, settings.amqp_plane) as bus,
            application(bus) as opened,
            serve(name, opened, bus, verifier),
        ):
            gc_tuning.freeze()
            _log.info("worker.ready")
            await asyncio.Future()
    _log.info("worker.stopped")


def _cancel_on_signals() -> None:
    """Cancel this task on SIGTERM or SIGINT: its context managers then drain and close."""
    task = asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)  # type: ignore[union-attr]
