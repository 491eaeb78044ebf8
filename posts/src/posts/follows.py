"""Who follows whom, in MongoDB: a copy of what `users` says."""

from collections.abc import Collection
from typing import Final

from odmantic.query import eq, in_, or_

from postbus.users.v1 import FollowChanged
from posts.models import Follow
from shared.data.mongo_database import Mongo

__all__ = ["FollowRepository"]

_MOST: Final = 5000
"""Followed users of one user that are read; `users` stores no more."""
_CHANGES: Final = 200
"""Follows stored or deleted at once by `replace`."""


class FollowRepository:
    """Stores and finds follows."""

    def __init__(self, mongo: Mongo) -> None:
        self._follows = mongo.collection(Follow)

    async def learn(self, event: FollowChanged) -> None:
        """Do as the event says."""
        if event.following:
            await self._follows.put(
                Follow(
                    id=event.follow_id, follower_id=event.follower_id, followed_id=event.followed_id
                )
            )
        else:
            await self._follows.delete_one(eq(Follow.id, event.follow_id))

    async def ids_followed_by(self, user_id: str) -> list[str]:
        """Return all whom the user follows, as far as is known here."""
        query = eq(Follow.follower_id, user_id)
        found = await self._follows.find(query, sort=[("_id", 1)], limit=_MOST)
        return [follow.followed_id for follow in found]

    async def replace(self, user_id: str, ids: Collection[str]) -> bool:
        """Have the user follow `ids` and no others; False if there is more to change than fits in
        one transaction. Then some of it is changed.
        """
        stored = set(await self.ids_followed_by(user_id))
        missing, surplus = sorted(set(ids) - stored), sorted(stored - set(ids))
        for id_ in missing[:_CHANGES]:
            follow = Follow(id=f"{user_id}/{id_}", follower_id=user_id, followed_id=id_)
            await self._follows.put(follow)
        gone = [f"{user_id}/{id_}" for id_ in surplus[:_CHANGES]]
        await self._follows.delete_many(in_(Follow.id, gone))
        return max(len(missing), len(surplus)) <= _CHANGES

    async def erase(self, user_id: str, limit: int) -> int:
        """Forget some follows of and by a user; return how many."""
        query = or_(eq(Follow.follower_id, user_id), eq(Follow.followed_id, user_id))
        some = await self._follows.find(query, sort=[("_id", 1)], limit=limit)
        return await self._follows.delete_many(in_(Follow.id, [each.id for each in some]))

    async def create_indexes(self) -> None:
        """Create what the queries need."""
        await self._follows.create_indexes()
