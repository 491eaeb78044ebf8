"""A new copy of a user's profile and follows from `users`, after an event was lost."""

from dataclasses import dataclass
from typing import Final

from postbus.users.v1 import BatchGetUsersRequest, ListFollowedIdsRequest, UsersServiceStub
from posts.authors.storage import AuthorRepository
from posts.follow_repository import FollowRepository
from posts.models import Author
from shared.context import Context
from shared.data.mongo_database import Mongo
from shared.outbox.inbox import Operation
from shared.outbox.unit_of_work import outside_unit_of_work

__all__ = ["USERS_TIMEOUT", "Resync"]

USERS_TIMEOUT: Final = 1.0
"""Timeout of each call to `users`, in seconds."""


@dataclass(frozen=True, slots=True)
class Resync:
    """Copies the caller's data again; see `posts.authors`."""

    mongo: Mongo
    authors: AuthorRepository
    follows: FollowRepository
    users: UsersServiceStub

    async def run(self, context: Context) -> None:
        """Store the caller's profile and follows with their revision, in a separate transaction.

        Does nothing if a later revision has been stored in the meantime. If many follows are
        missing, one run stores a part of them, and the caller's next call stores more. Raises the
        ServiceError of a failed call.
        """
        user_id = context.user_id
        request = BatchGetUsersRequest(ids=[user_id])
        # Only `users` knows the revision: one that the request claims would be stored for ever.
        claimed, context.caller_revision = context.caller_revision, 0
        response = await self.users.batch_get_users(request, timeout=USERS_TIMEOUT)
        # read before the follows, so that they are at least as new as the revision
        revision = context.caller_revision
        context.raise_revision(claimed)
        followed = await self.users.list_followed_ids(
            ListFollowedIdsRequest(), timeout=USERS_TIMEOUT
        )

        async def store() -> bytes:
            for profile in response.profiles:
                await self._store(Author.from_message(profile.id, profile), revision, followed.ids)
            return b""

        operation = Operation(
            key=Operation.key_of("resync", context.operation_id), begin_immediately=True
        )
        with outside_unit_of_work():
            await self.mongo.perform(operation, store)

    async def _store(self, author: Author, revision: int, followed: list[str]) -> None:
        stored = (await self.authors.by_ids([author.id])).get(author.id)
        if stored is None or stored.deleted or max(stored.ahead or [0]) > revision:
            return
        await self.authors.upsert_if_newer(author)
        if await self.follows.replace(author.id, followed, self.authors.lock):
            await self.authors.set_revision(author.id, revision, None)
