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
from shared.bus.envelope import unavailable
from shared.bus.message_bus import Following, MessageBus, Subscription
from shared.errors import ServiceError
from shared.identity import ACCESS_TOKEN_SECONDS, Caller, TokenVerifier, session_revoked
from shared.wire import decode

__all__ = ["REMEMBERED_SECONDS", "SessionVerifier"]

_log = structlog.get_logger()
_STREAM: Final = "postbus.revocations.stream"
_TYPES: Final = {name: event for name, event in EVENTS.items() if event.ended_sessions}
"""The events that end sessions, as the contract says."""
_CLOCK_SECONDS: Final = 60.0
"""A token that one process takes for expired may be valid at another: both clocks may be 30 s off.
"""
REMEMBERED_SECONDS: Final = ACCESS_TOKEN_SECONDS + _CLOCK_SECONDS
_REMEMBERED: Final = 100_000
"""Sessions; the one that ended first is forgotten first."""
_MAX_SESSION_ID: Final = 64
"""Characters of a session's id, a UUID; a longer one can't be in a token of ours."""


class SessionVerifier:
    """Verifies access tokens, and refuses those of sessions that have been revoked.

    `run` reads the revocations of the last token lifetime, and then every new one. Until the former
    are read, no token is accepted. `clock` gives seconds.
    """

    def __init__(
        self, bus: MessageBus, verifier: TokenVerifier, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bus = bus
        self._verifier = verifier
        self._clock = clock
        self._following: Following | None = None
        self._revoked: OrderedDict[str, float] = OrderedDict()
        self._waiting: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()

    async def run(self) -> Subscription:
        """Begin to read revocations; waits for the broker, and at most a second for the stream."""
        self._following = await self._bus.follow(
            _STREAM, list(_TYPES), self._learn, seconds=REMEMBERED_SECONDS
        )
        return self._following

    @property
    def ready(self) -> bool:
        """Whether all revocations of the last token lifetime are known.

        It stays as it was while the broker is unavailable; when the broker returns, the stream is
        read again before any call is served.
        """
        return self._following is not None and self._following.complete

    async def require_ready(self) -> None:
        """Raise UNAVAILABLE, SESSIONS_UNKNOWN unless `ready`: a probe for readiness."""
        if not self.ready:
            raise _unknown()

    def verify(self, token: str, *, ended: bool = False) -> Caller:
        """Return the caller, of a session that has `ended` too.

        Raises as TokenVerifier and `require_open` do.
        """
        caller = self._verifier.verify(token)
        if not self.ready:
            raise _unknown()
        if not ended:
            self._require_not_revoked(caller.session_id)
        return caller

    def require_open(self, caller: Caller) -> None:
        """Raise UNAUTHENTICATED, SESSION_REVOKED if the caller's session has been revoked.

        UNAVAILABLE, SESSIONS_UNKNOWN while that is not known.
        """
        if not self.ready:
            raise _unknown()
        self._require_not_revoked(caller.session_id)

    async def until_revoked(self, caller: Caller) -> NoReturn:
        """Raise UNAUTHENTICATED, SESSION_REVOKED once the caller's session is revoked."""
        self._require_not_revoked(caller.session_id)
        revoked = self._waiting.setdefault(caller.session_id, asyncio.Event())
        await revoked.wait()
        raise session_revoked()

    def _require_not_revoked(self, session_id: str) -> None:
        if session_id in self._revoked and self._revoked[session_id] > self._clock():
            raise session_revoked()

    async def _learn(self, body: bytes) -> None:
        try:
            event = decode(Event, body)
            type_ = _TYPES[event.type]
            message = decode(type_.message, event.data)
        except (ServiceError, KeyError):
            _log.warning("event.malformed")
            return
        for session_id in getattr(message, type_.ended_sessions):
            if len(session_id) <= _MAX_SESSION_ID:
                self._revoke(session_id)

    def _revoke(self, session_id: str) -> None:
        now = self._clock()
        self._revoked[session_id] = now + REMEMBERED_SECONDS
        self._revoked.move_to_end(session_id)
        while len(self._revoked) > _REMEMBERED or next(iter(self._revoked.values())) <= now:
            self._revoked.popitem(last=False)
        if waiting := self._waiting.get(session_id):
            waiting.set()


def _unknown() -> ServiceError:
    return unavailable("SESSIONS_UNKNOWN", "Access tokens can't be verified at the moment.")
