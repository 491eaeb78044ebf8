"""Sessions that end before their access tokens expire."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NoReturn
from weakref import WeakValueDictionary

import structlog

from postbus.bus.v1 import Event
from postbus.registry import EVENTS
from postbus.users.v1 import SessionsRevoked
from shared.errors import ServiceError
from shared.identity import ACCESS_TOKEN_SECONDS, Caller, TokenVerifier, session_revoked
from shared.messagebus import MessageBus
from shared.wire import decode

__all__ = ["SessionVerifier"]

_log = structlog.get_logger()
_TYPE: Final = next(name for name, event in EVENTS.items() if event.message is SessionsRevoked)
_REMEMBERED: Final = 100_000
"""Sessions; the one that ended first is forgotten first."""


class SessionVerifier:
    """Verifies access tokens, and refuses those of sessions that have been revoked.

    `run` begins to hear of them. What was revoked while the broker was away is missed, and nothing
    can be done about it: such tokens are taken until they expire, ten minutes after their making
    at most. `clock` gives seconds.
    """

    def __init__(
        self, bus: MessageBus, verifier: TokenVerifier, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bus = bus
        self._verifier = verifier
        self._clock = clock
        self._revoked: OrderedDict[str, float] = OrderedDict()
        self._waiting: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()

    async def run(self) -> None:
        """Begin to hear of revocations, once the broker is there."""
        await self._bus.subscribe([_TYPE], self._hear)

    def verify(self, token: str, *, ended: bool = False) -> Caller:
        """Return the caller, of a session that has `ended` too; raises as TokenVerifier and
        `require_open` do.
        """
        caller = self._verifier.verify(token)
        if not ended:
            self.require_open(caller)
        return caller

    def require_open(self, caller: Caller) -> None:
        """Raise UNAUTHENTICATED, SESSION_REVOKED if the caller's session has been revoked."""
        if self._revoked.get(caller.session_id, 0.0) > self._clock():
            raise session_revoked()

    async def until_revoked(self, caller: Caller) -> NoReturn:
        """Wait until the caller's session is revoked; raises what `require_open` then does."""
        self.require_open(caller)
        revoked = self._waiting.setdefault(caller.session_id, asyncio.Event())
        await revoked.wait()
        raise session_revoked()

    async def _hear(self, body: bytes) -> None:
        try:
            sessions = decode(SessionsRevoked, decode(Event, body).data).session_ids
        except ServiceError:
            _log.warning("event.malformed")
            return
        for session_id in sessions:
            self._revoke(session_id)

    def _revoke(self, session_id: str) -> None:
        now = self._clock()
        self._revoked[session_id] = now + ACCESS_TOKEN_SECONDS
        self._revoked.move_to_end(session_id)
        while len(self._revoked) > _REMEMBERED or next(iter(self._revoked.values())) <= now:
            self._revoked.popitem(last=False)
        if waiting := self._waiting.get(session_id):
            waiting.set()
