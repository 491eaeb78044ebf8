"""Verify access tokens, and refuse the tokens of revoked sessions."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NoReturn
from weakref import WeakValueDictionary

import betterproto

from postbus import reasons
from postbus.registry import EVENTS
from shared.access_tokens import ACCESS_TOKEN_SECONDS, Caller, TokenVerifier, session_revoked
from shared.bus import MessageBus, StreamSubscription, Subscription, typed_handler
from shared.bus.call_errors import unavailable
from shared.errors import ServiceError

__all__ = ["REMEMBERED_SECONDS", "SessionVerifier"]

_STREAM: Final = "revocations"
_ENDED_SESSIONS: Final = {e.message: e.ended_sessions for e in EVENTS.values() if e.ended_sessions}
"""The events that end sessions, with the name of their field of session ids."""
_CLOCK_SECONDS: Final = 90.0
"""A revocation is kept longer by the leeway of `exp`, and by the difference of two clocks, of which
each is wrong by 30 seconds."""
REMEMBERED_SECONDS: Final = ACCESS_TOKEN_SECONDS + _CLOCK_SECONDS
"""Time for which a revocation is kept: the lifetime of the tokens that it concerns."""
_MAX_REVOKED: Final = 100_000
"""Most revoked sessions that are kept; the oldest revocation is dropped first."""
_MAX_SESSION_ID: Final = 64
"""Characters of a session's id, a UUID. Tokens with longer ids are refused."""


class SessionVerifier:
    """Verifies access tokens, and refuses the tokens of revoked sessions.

    `run` reads the revocations of the last token lifetime, and then every new one. No token is
    accepted before the past revocations are read. `clock` returns seconds.
    """

    def __init__(
        self, bus: MessageBus, verifier: TokenVerifier, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bus = bus
        self._verifier = verifier
        self._clock = clock
        self._subscription: StreamSubscription | None = None
        self._revoked: OrderedDict[str, float] = OrderedDict()
        self._waiting: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()

    async def run(self) -> Subscription:
        """Subscribe to revocations. Waits for the broker, and a second at most for the stream."""
        types, handler = typed_handler(self._on_revocation, _ENDED_SESSIONS)
        self._subscription = await self._bus.read_stream(
            _STREAM, types, handler, seconds=REMEMBERED_SECONDS
        )
        return self._subscription

    @property
    def ready(self) -> bool:
        """Whether all revocations of the last token lifetime are known.

        The value does not change while the broker is unavailable; after a reconnect the stream is
        read again before any call is served.
        """
        return self._subscription is not None and self._subscription.complete

    async def require_ready(self) -> None:
        """Raise UNAVAILABLE, SESSIONS_UNKNOWN unless `ready`; a probe for the health check."""
        if not self.ready:
            raise _unknown()

    def verify(self, token: str, *, ended: bool = False) -> Caller:
        """Return the caller of a token. With `ended`, a revoked session is accepted.

        Raises the errors of TokenVerifier.verify and of `require_open`.
        """
        caller = self._verifier.verify(token)
        if not self.ready:
            raise _unknown()
        if not ended:
            self._require_not_revoked(caller.session_id)
        return caller

    def require_open(self, caller: Caller) -> None:
        """Raise UNAUTHENTICATED, SESSION_REVOKED if the caller's session has been revoked.

        Raises UNAVAILABLE, SESSIONS_UNKNOWN unless `ready`.
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

    def _on_revocation(self, event: betterproto.Message) -> None:
        for session_id in getattr(event, _ENDED_SESSIONS[type(event)]):
            if len(session_id) <= _MAX_SESSION_ID:
                self._revoke(session_id)

    def _revoke(self, session_id: str) -> None:
        now = self._clock()
        self._revoked[session_id] = now + REMEMBERED_SECONDS
        self._revoked.move_to_end(session_id)
        while len(self._revoked) > _MAX_REVOKED or next(iter(self._revoked.values())) <= now:
            self._revoked.popitem(last=False)
        if waiting := self._waiting.get(session_id):
            waiting.set()


def _unknown() -> ServiceError:
    return unavailable(reasons.SESSIONS_UNKNOWN, "Access tokens cannot be verified at the moment.")
