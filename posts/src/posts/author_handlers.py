"""Consumers of the events of `users` about accounts. They keep the author projection."""

from dataclasses import dataclass

from postbus.posts.v1 import UserContentErasureContinued
from postbus.users.v1 import UserDeleted, UserProfileUpdated, UserRegistered
from posts.authors import AuthorRepository
from posts.models import Author
from shared.bus import EventPattern, publish
from shared.context import Context

__all__ = ["AuthorHandlers"]


@dataclass(frozen=True, slots=True)
class AuthorHandlers:
    """Keeps authors up to date."""

    authors: AuthorRepository

    @EventPattern(UserRegistered)
    async def user_registered(self, event: UserRegistered, _context: Context) -> None:
        """Store the new author."""
        name = event.username
        author = Author(id=event.user_id, username=name, name_key=name.lower())
        await self.authors.upsert_if_newer(author)

    @EventPattern(UserProfileUpdated, late=True)
    async def user_profile_updated(self, event: UserProfileUpdated, context: Context) -> None:
        """Store the changed author, unless the event is late, and the revision."""
        if not context.late:
            author = Author.from_message(event.user_id, event)
            await self.authors.upsert_if_newer(author)
        await self.authors.add_revision(event.user_id, event.revision)

    @EventPattern(UserDeleted)
    async def user_deleted(self, event: UserDeleted, _context: Context) -> None:
        """Store a tombstone, then start the erasure of the user's content."""
        await self.authors.mark_deleted(event.user_id)
        await publish(UserContentErasureContinued(user_id=event.user_id))
