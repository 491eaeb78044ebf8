"""A new copy of a user's card and follows from `users`, if an event is missing."""

from typing import Final

from postbus.users.v1 import BatchGetUsersRequest, ListFollowedIdsRequest, UsersServiceStub
from posts.authors import AuthorRepository, card_of
from posts.follows import FollowRepository
from posts.models import Author
from shared.context import Context
from shared.data.mongo_database import Mongo
from shared.outbox.inbox import Operation
from shared.outbox.unit_of_work import outside_unit_of_work

__all__ = ["Resync"]

_SECONDS: Final = 1.0
"""Timeout of each call to `users`."""


class Resync:
    """Copies the caller's data again; see `posts.revisions`."""

    def __init__(
        self,
        mongo: Mongo,
        authors: AuthorRepository,
        follows: FollowRepository,
        users: UsersServiceStub,
    ) -> None:
        self._mongo = mongo
        self._authors = authors
        self._follows = follows
        self._users = users

    async def run(self, context: Context) -> None:
        """Store the caller's card and follows with their revision, in a transaction of its own.

        Does nothing if a later revision has been stored meanwhile. Of many missing follows it
        stores some, and the caller's next call goes on. Raises ServiceError as calls do.
        """
        user_id = context.user_id
        request = BatchGetUsersRequest(ids=[user_id])
        profiles = (await self._users.batch_get_users(request, timeout=_SECONDS)).profiles
        revision = context.caller_revision  # of before the follows are read: they are no older
        followed = await self._users.list_followed_ids(ListFollowedIdsRequest(), timeout=_SECONDS)
        cards = [card_of(profile.id, profile) for profile in profiles]

        async def store() -> bytes:
            for card in cards:
                await self._store(card, revision, followed.ids)
            return b""

        operation = Operation(
            key=Operation.key_of("resync", context.operation_id), begin_immediately=True
        )
        with outside_unit_of_work():
            await self._mongo.perform(operation, store)

    async def _store(self, card: Author, revision: int, followed: list[str]) -> None:
        stored = await self._authors.get(card.id)
        if stored is None or stored.deleted or max(stored.ahead or [0]) > revision:
            return
        await self._authors.learn(card)
        if await self._follows.replace(card.id, followed):
            await self._authors.set_revision(card.id, revision, None)
