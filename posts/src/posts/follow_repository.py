"""Follows in MongoDB: a projection of the follows in `users`."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from odmantic.query import eq, in_

from postbus.users.v1 import FollowChanged
from posts.models import Follow
from posts.repository import Repository
from shared.data.mongo_database import Mongo

__all__ = ["FollowRepository"]

Lock = Callable[[Sequence[str]], Awaitable[list[str]]]

_MAX_FOLLOWED: Final = 5000
"""Follows of one user that are read. `users` has the same limit."""
_REPLACED: Final = 200
"""Follows that one `replace` inserts at most, and that it deletes at most."""


class FollowRepository(Repository[Follow]):
    """Stores and finds follows."""

    def __init__(self, mongo: Mongo) -> None:
        super().__init__(mongo, Follow)

    async def apply(self, event: FollowChanged) -> None:
        """Store or delete the follow of an event."""
        if event.following:
            pair = {"follower_id": event.follower_id, "followed_id": event.followed_id}
            await self.put(Follow(id=event.follow_id, **pair))
        else:
            await self.delete_one(eq(Follow.id, event.follow_id))

    async def ids_followed_by(self, user_id: str) -> list[str]:
        """Return the ids of the users that this user follows, as far as they are stored."""
        query = eq(Follow.follower_id, user_id)
        found = await self.find(query, sort=[("_id", 1)], limit=_MAX_FOLLOWED)
        return [follow.followed_id for follow in found]

    async def replace(self, user_id: str, ids: Collection[str], lock: Lock) -> bool:
        """Replace the users that this user follows by `ids`, without deleted users.

        `lock` is AuthorRepository.lock. False if more than 200 inserts or deletes are needed; then
        the first 200 of each are made.
        """
        stored = set(await self.ids_followed_by(user_id))
        missing, surplus = sorted(set(ids) - stored), sorted(stored - set(ids))
        for id_ in await lock(missing[:_REPLACED]):
            follow = Follow(id=f"{user_id}/{id_}", follower_id=user_id, followed_id=id_)
            await self.put(follow)
        deleted = [f"{user_id}/{id_}" for id_ in surplus[:_REPLACED]]
        await self.delete_many(in_(Follow.id, deleted))
        return max(len(missing), len(surplus)) <= _REPLACED
