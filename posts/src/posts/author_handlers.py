"""Consumers of the events of `users`. They keep the projection of authors and follows."""

from dataclasses import dataclass
from typing import Final

from postbus import reasons
from postbus.posts.v1 import NotificationKind, UserContentErasureContinued
from postbus.users.v1 import (
    BatchGetUsersRequest,
    FollowChanged,
    UserDeleted,
    UserProfileUpdated,
    UserRegistered,
    UsersServiceStub,
)
from posts.authors import AuthorRepository
from posts.authors.resync import USERS_TIMEOUT
from posts.follow_repository import FollowRepository
from posts.models import Author
from posts.notification_handlers import Notifier
from shared.bus import EventPattern, publish
from shared.context import Context
from shared.errors import ServiceError

__all__ = ["AuthorHandlers", "FollowHandlers"]

_MAX_VERSION_STEP: Final = 1_000_000
"""Each change of an account adds one to its version, and events are lost rarely."""


@dataclass(frozen=True, slots=True)
class AuthorHandlers:
    """Keeps authors up to date."""

    authors: AuthorRepository
    users: UsersServiceStub

    @EventPattern(UserRegistered)
    async def user_registered(self, event: UserRegistered, _context: Context) -> None:
        """Store the new author."""
        name = event.username
        author = Author(id=event.user_id, username=name, name_key=name.lower())
        await self.authors.upsert_if_newer(author)

    @EventPattern(UserProfileUpdated, late=True)
    async def user_profile_updated(self, event: UserProfileUpdated, context: Context) -> None:
        """Store the changed author, unless the event is late, and the revision.

        A version far beyond the stored one is a fault or forged, unless `users` has it: FORGED.
        """
        if not context.late:
            await self._require_plausible(event)
            author = Author.from_message(event.user_id, event)
            await self.authors.upsert_if_newer(author)
        await self.authors.add_revision(event.user_id, event.revision)

    async def _require_plausible(self, event: UserProfileUpdated) -> None:
        stored = (await self.authors.by_ids([event.user_id])).get(event.user_id)
        if event.version - (stored.version if stored else 0) <= _MAX_VERSION_STEP:
            return
        request = BatchGetUsersRequest(ids=[event.user_id])
        response = await self.users.batch_get_users(request, timeout=USERS_TIMEOUT)
        if all(profile.version < event.version for profile in response.profiles):
            raise ServiceError(reasons.FORGED, "The owner has no such version of the user.")

    @EventPattern(UserDeleted)
    async def user_deleted(self, event: UserDeleted, _context: Context) -> None:
        """Store a tombstone, then start the erasure of the user's content."""
        await self.authors.put(Author.tombstone(event.user_id))
        await publish(UserContentErasureContinued(user_id=event.user_id))


@dataclass(frozen=True, slots=True)
class FollowHandlers:
    """Keeps follows up to date."""

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
