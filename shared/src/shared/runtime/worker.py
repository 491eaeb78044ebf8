"""Run a worker: connect, serve, report health, stop without losing work."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog
import uvloop

from postbus.bus.v1 import CheckRequest, CheckResponse, HealthServiceBase, Part
from shared import tasks
from shared.access_tokens import TokenVerifier
from shared.bus import Dispatcher, MessageBus, MessagePattern, Subscription
from shared.bus.amqp import connect
from shared.context import Context
from shared.errors import NotReadyError, ServiceError
from shared.limited_log import LimitedLog
from shared.outbox.relay import flush, relay
from shared.outbox.unit_of_work import Store, without_store
from shared.runtime import gc_tuning
from shared.runtime.logs import configure_logs
from shared.runtime.session_verifier import SessionVerifier
from shared.runtime.settings import ServiceSettings
from shared.runtime.signals import cancel_on_signals

__all__ = ["Application", "Health", "run_worker", "serve"]

_log = structlog.get_logger()
_PROBE_TIMEOUT = 0.5
"""Seconds."""
_LINES: Final = 10
"""Lines about one dependency in ten seconds: the text of its error can change with each check."""

Probe = Callable[[], Awaitable[None]]
"""Returns if the worker can do its work with a dependency, else raises: NotReadyError, whose text
names what is missing and the command that mends it, or any other exception."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """The handlers and dependencies of a worker."""

    handlers: Iterable[object]
    """Objects whose methods have @MessagePattern or @EventPattern."""
    probes: Mapping[str, Probe]
    """By the name of the dependency."""
    store: Store | None = None
    """The database with inbox and outbox. Without one, operations are not deduplicated."""


class Health:
    """The handler of HealthService; `probes` by the name of the dependency.

    `warning` returns that of the bus; see MessageBus.warning.
    """

    def __init__(
        self, probes: Mapping[str, Probe], warning: Callable[[], str] = lambda: ""
    ) -> None:
        self._probes = probes
        self._warning = warning
        self._messages = dict.fromkeys(probes, "")
        self._log = LimitedLog(_LINES)

    @MessagePattern(HealthServiceBase.check)
    async def check(self, _request: CheckRequest, _context: Context) -> CheckResponse:
        """Run all probes concurrently; half a second at most."""
        parts = await self.check_parts()
        if warning := self._warning():
            parts.append(Part(name="calls", ready=True, message=warning))
        return CheckResponse(parts=parts, time=datetime.now(UTC))

    async def check_parts(self) -> list[Part]:
        """Run all probes concurrently, and log each message that has changed."""
        messages = await asyncio.gather(*map(_message, self._probes.values()))
        for name, message in zip(self._probes, messages, strict=True):
            if message != self._messages[name]:
                self._log_change(name, message)
        return [
            Part(name=name, ready=not message, message=message)
            for name, message in self._messages.items()
        ]

    def _log_change(self, name: str, message: str) -> None:
        self._messages[name] = message
        if message:
            self._log.write(
                logging.WARNING, "dependency.not_ready", key=name, dependency=name, message=message
            )
        else:
            self._log.write(logging.INFO, "dependency.ready", key=name, dependency=name)


async def _message(probe: Probe) -> str:
    """Return the message of a failed probe, "" if the probe succeeds."""
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT):
            await probe()
    except NotReadyError as error:
        return str(error)
    except ServiceError as error:
        return str(error.__cause__ if isinstance(error.__cause__, NotReadyError) else error.message)
    except TimeoutError:
        return f"No response within {_PROBE_TIMEOUT} seconds."
    except Exception as error:  # noqa: BLE001  # drivers raise undocumented errors; their texts may be secret
        return f"Unavailable: {type(error).__name__}."
    return ""


@asynccontextmanager
async def serve(
    name: str, application: Application, bus: MessageBus, verifier: TokenVerifier
) -> AsyncIterator[None]:
    """Serve `application` on `bus` as worker `name`; at the end, wait for the running handlers.

    Raises ContractMismatchError if its handlers are not those of the contract. Revocations of
    sessions are read before the first call is served; until they are, calls with a token get
    UNAVAILABLE, SESSIONS_UNKNOWN.
    """
    sessions = SessionVerifier(bus, verifier)
    probes = {**application.probes, "sessions": sessions.require_ready}
    health = Health(probes, lambda: bus.warning)
    handlers = [*application.handlers, health]
    store = application.store
    perform = store.perform if store else without_store(bus.publish)
    log = bus.security_log
    dispatcher = Dispatcher(
        name, handlers, sessions, perform, security_log=log, incidents=bus.incidents
    )
    subscriptions: list[Subscription] = []
    relaying = asyncio.create_task(relay(store, bus.publish_encoded)) if store else None
    try:
        subscriptions.append(await sessions.run())
        subscriptions.append(await bus.serve(name, dispatcher.routes, dispatcher.answer))
        subscriptions += await asyncio.gather(
            *(
                bus.subscribe([event], dispatcher.consume, queue=f"{name}.{event}")
                for event in dispatcher.events
            )
        )
        await health.check_parts()  # logs what is missing, before anything is requested
        yield
    finally:
        await asyncio.gather(*(subscription.cancel() for subscription in subscriptions))
        if store and relaying:
            await tasks.end(relaying)
            await flush(store, bus.publish_encoded)


def run_worker(
    name: str,
    settings: ServiceSettings,
    application: Callable[[MessageBus], AbstractAsyncContextManager[Application]],
) -> None:
    """Run the worker `name` until SIGTERM or SIGINT. `application` opens its dependencies.

    @asynccontextmanager
    async def application(bus: MessageBus) -> AsyncIterator[Application]:
        async with open_postgres(settings.postgres_url) as postgres:
            yield Application(handlers=[...], probes={"postgresql": postgres.ping}, store=postgres)

    run_worker("users", settings, application)
    """
    configure_logs(name, settings.log_format)
    uvloop.run(_run(name, settings, application))


async def _run(
    name: str,
    settings: ServiceSettings,
    application: Callable[[MessageBus], AbstractAsyncContextManager[Application]],
) -> None:
    cancel_on_signals()
    verifier = TokenVerifier(settings.verification_keys)
    with suppress(asyncio.CancelledError):
        async with (
            connect(settings.amqp_url, name) as bus,
            application(bus) as opened,
            serve(name, opened, bus, verifier),
        ):
            gc_tuning.freeze()
            _log.info("worker.ready")
            await asyncio.Future()
    _log.info("worker.stopped")
