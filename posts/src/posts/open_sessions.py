"""Sessions that `users` has confirmed to be open.

To be deleted once the dispatcher of every worker refuses ended sessions: then `AuthorCards` needs
no `sessions`.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from postbus.bus.v1 import Event
from postbus.registry import EVENTS
from postbus.users.v1 import SessionsRevoked
from shared.errors import ServiceError
from shared.messagebus import MessageBus
from shared.wire import decode

__all__ = ["OpenSessions"]

_log = structlog.get_logger()
_TYPE: Final = next(name for name, event in EVENTS.items() if event.message is SessionsRevoked)
_MAX_SESSIONS: Final = 100_000
"""Confirmed sessions, and ended ones; the oldest is forgotten first."""


class OpenSessions:
    """Remembers the sessions that `users` has confirmed, until the event that they have ended."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, None] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()

    @asynccontextmanager
    async def hearing(self, bus: MessageBus) -> AsyncIterator[None]:
        """Consume the events of sessions that have ended."""
        subscription = await bus.subscribe([_TYPE], self._hear, on_gap=self._open.clear)
        try:
            yield
        finally:
            await subscription.cancel()

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._open

    def confirm(self, session_id: str) -> None:
        """Remember a session for which `users` has answered, unless it has ended since."""
        if session_id not in self._ended:
            _remember(self._open, session_id)

    async def _hear(self, body: bytes) -> None:
        try:
            ended = decode(SessionsRevoked, decode(Event, body).data).session_ids
        except ServiceError:
            _log.warning("event.malformed")
            return
        for session_id in ended:
            self._open.pop(session_id, None)
            _remember(self._ended, session_id)


def _remember(sessions: OrderedDict[str, None], session_id: str) -> None:
    sessions[session_id] = None
    sessions.move_to_end(session_id)
    if len(sessions) > _MAX_SESSIONS:
        sessions.popitem(last=False)
