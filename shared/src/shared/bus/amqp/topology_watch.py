"""Restores the exchanges, queues and bindings of a process while it runs."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import structlog

from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_errors import BROKER_ERRORS, broker_errors
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.declarations import Binding
from shared.bus.amqp.queue_migration import bind_present
from shared.bus.amqp.topology import all_bindings, all_events

__all__ = ["KeptEvents", "Watched", "watch"]

_log = structlog.get_logger()
_TICK_SECONDS: Final = 1.0
"""Time between two checks of the bindings to exchanges of other services."""
_SHORTEST_SECONDS: Final = 0.2
"""Time between two checks while the session suspects a loss."""
_MAX_ERROR: Final = 500
"""Characters of an error in the log."""
_TICKS: Final = 5
"""Ticks between two declarations of everything else, and the first ticks, which all have one."""


class Watched(Protocol):
    """A consumer with queues and bindings to restore."""

    def connection(self, session: BrokerSession) -> BrokerConnection | None:
        """Return the connection of its queues; None while it has no queues."""

    async def restore(self, connection: BrokerConnection) -> bool:
        """Restore the objects of this service; return whether something was missing."""

    def restored(self) -> None:
        """Take note that something was missing and has been declared again."""

    def foreign(self) -> Sequence[Binding]:
        """Return the bindings to exchanges that another service may own."""

    def checked(self, missing: bool) -> None:
        """Take note of a check: whether the exchange of a binding was missing."""


async def watch(session: BrokerSession, watched: Callable[[], Iterable[Watched]]) -> None:
    """Restore missing objects, until the session is lost or the task is cancelled.

    Bindings are made again every second, because a missed
    event cannot be detected, and everything else every five seconds, or as soon as the session
    suspects a loss, and in the first five seconds every second: the session may have begun while a
    node of the broker went down. Declarations of what exists change nothing.
    """
    tick = 0
    while not session.lost.is_set():
        try:
            with broker_errors():
                await session.events.restore()
                active = [each for each in watched() if each.connection(session)]
                if tick < _TICKS or tick % _TICKS == 0 or session.suspicious.is_set():
                    session.suspicious.clear()
                    await _restore_own(session, active)
                await _restore_foreign(session, active)
            tick += 1
        except BROKER_ERRORS as error:
            _log.warning("topology.not_restored", error=repr(error)[:_MAX_ERROR])
            tick = 0
        await asyncio.sleep(_SHORTEST_SECONDS)
        await session.wait_suspicious(_TICK_SECONDS - _SHORTEST_SECONDS)


async def _restore_own(session: BrokerSession, active: Sequence[Watched]) -> None:
    missing = [await session.restore()]
    for each in active:
        if connection := each.connection(session):
            missing.append(await each.restore(connection))
    if any(missing):  # the exchanges and the delay queues belong to all
        for each in active:
            each.restored()


async def _restore_foreign(session: BrokerSession, active: Sequence[Watched]) -> None:
    missing = set(await bind_present(session.consuming, [b for w in active for b in w.foreign()]))
    for each in active:
        each.checked(any(binding in missing for binding in each.foreign()))


class KeptEvents:
    """The stream of the events of all services, as the process that keeps it watches it."""

    def __init__(self, services: Iterable[str]) -> None:
        self._bindings = all_bindings(services)

    def connection(self, session: BrokerSession) -> BrokerConnection | None:
        """See Watched.connection."""
        return session.consuming

    async def restore(self, connection: BrokerConnection) -> bool:
        """See Watched.restore."""
        return await connection.restore(all_events())

    def restored(self) -> None:
        """See Watched.restored."""

    def foreign(self) -> Sequence[Binding]:
        """See Watched.foreign."""
        return self._bindings

    def checked(self, missing: bool) -> None:
        """See Watched.checked."""
