"""The highest known revision of each caller's account."""

from collections import OrderedDict
from collections.abc import Collection
from typing import Final

from postbus.users.v1 import FollowChanged, UserProfileUpdated
from shared.bus import MessageBus, typed_handler

__all__ = ["CallerRevisions"]

_EVENTS: Final[Collection[type[FollowChanged | UserProfileUpdated]]] = (
    FollowChanged,
    UserProfileUpdated,
)
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
        await self._bus.subscribe(*typed_handler(self._on_change, _EVENTS))

    def highest(self, user_id: str) -> int:
        """Return the highest known revision of a user's account; 0 if none is known."""
        revision = self._revisions.get(user_id, 0)
        if revision:
            self._revisions.move_to_end(user_id)
        return revision

    def record(self, user_id: str, revision: int) -> None:
        """Store a revision, unless a higher one is stored; 0 stands for an unknown revision."""
        if revision <= self._revisions.get(user_id, 0):
            return
        self._revisions[user_id] = revision
        self._revisions.move_to_end(user_id)
        if len(self._revisions) > _MAX_USERS:
            self._revisions.popitem(last=False)

    def _on_change(self, event: FollowChanged | UserProfileUpdated) -> None:
        if isinstance(event, FollowChanged):
            self.record(event.follower_id, event.follower_revision)
        else:
            self.record(event.user_id, event.revision)
