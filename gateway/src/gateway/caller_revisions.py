"""The highest known revision of each caller's account."""

from collections import OrderedDict
from typing import Final

import structlog

from postbus.bus.v1 import Event
from postbus.registry import EVENTS
from postbus.users.v1 import FollowChanged, UserProfileUpdated
from shared.bus import MessageBus
from shared.errors import ServiceError
from shared.wire import decode

__all__ = ["CallerRevisions"]

_log = structlog.get_logger()
_TYPES: Final = {
    name: event.message
    for name, event in EVENTS.items()
    if event.message in (UserProfileUpdated, FollowChanged)
}
_MAX_USERS: Final = 100_000
"""Users of about 200 bytes each; the least recently used one is dropped first."""


class CallerRevisions:
    """Revisions from replies and events; see `caller_revision` in `postbus.bus.v1.Request`.

    The gateway that made a change gets the revision with the reply. Other gateways get it with the
    event: usually within milliseconds, and within a second while the broker is reachable. Until
    then, reads through them may return data from before the change.
    """

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._revisions: OrderedDict[str, int] = OrderedDict()

    async def run(self) -> None:
        """Subscribe to the events; wait until the broker is reachable."""
        await self._bus.subscribe(list(_TYPES), self._read)

    def known(self, user_id: str) -> int:
        """Return the highest known revision of a user's account; 0 if none is known."""
        revision = self._revisions.get(user_id, 0)
        if revision:
            self._revisions.move_to_end(user_id)
        return revision

    def learn(self, user_id: str, revision: int) -> None:
        """Store a revision, unless a higher one is stored; 0 stands for an unknown revision."""
        if revision <= self._revisions.get(user_id, 0):
            return
        self._revisions[user_id] = revision
        self._revisions.move_to_end(user_id)
        if len(self._revisions) > _MAX_USERS:
            self._revisions.popitem(last=False)

    async def _read(self, body: bytes) -> None:
        try:
            event = decode(Event, body)
            if event.type not in _TYPES:  # published under the routing key of another event
                return
            changed = decode(_TYPES[event.type], event.data)
        except ServiceError:
            _log.warning("event.malformed")
            return
        if isinstance(changed, FollowChanged):
            self.learn(changed.follower_id, changed.follower_revision)
        elif isinstance(changed, UserProfileUpdated):
            self.learn(changed.user_id, changed.revision)
