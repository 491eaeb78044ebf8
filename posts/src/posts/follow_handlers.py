"""The consumer of follow events from `users`."""

from dataclasses import dataclass

from postbus.posts.v1 import NotificationKind
from postbus.users.v1 import FollowChanged
from posts.authors import AuthorRepository
from posts.follow_repository import FollowRepository
from posts.notification_handlers import Notifier
from shared.bus import EventPattern
from shared.context import Context

__all__ = ["FollowHandlers"]


@dataclass(frozen=True, slots=True)
class FollowHandlers:
    """Keeps the projection of follows."""

    authors: AuthorRepository
    follows: FollowRepository
    notifier: Notifier

    @EventPattern(FollowChanged, late=True)
    async def follow_changed(self, event: FollowChanged, context: Context) -> None:
        """Store or delete the follow, and notify the followed user.

        Only the revision is stored if the event is late, or for a new follow if a user is deleted.
        """
        is_new = await self.authors.add_revision(event.follower_id, event.follower_revision)
        if context.late or not is_new:
            return
        pair = [event.follower_id, event.followed_id]
        if event.following and await self.authors.lock(pair) != pair:
            return
        await self.follows.apply(event)
        if event.following:
            await self.notifier.notify(
                NotificationKind.FOLLOW, event.followed_id, event.follower_id
            )
