"""Who likes which posts, in MongoDB."""

from collections.abc import Sequence
from typing import Any

from odmantic.query import eq, in_

from posts.models import Like, Post
from posts.repository import PostFilter
from posts.times import now, place
from shared.mongo import Mongo
from shared.pages import Page

__all__ = ["LikeRepository", "Liked"]

Liked = tuple[Post, str]
"""A post, and the place of the like."""


class LikeRepository:
    """Stores and finds likes."""

    def __init__(self, mongo: Mongo) -> None:
        self._likes = mongo.collection(Like)
        self._posts = mongo.collection(Post)

    async def add(self, post_id: str, user_id: str) -> bool:
        """Like; False if it was so before."""
        id_ = f"{post_id}/{user_id}"
        if await self._likes.get(id_):
            return False
        liked = place(now(), post_id)
        await self._likes.insert(Like(id=id_, post_id=post_id, user_id=user_id, place=liked))
        return True

    async def remove(self, post_id: str, user_id: str) -> bool:
        """Like no longer; False if it was so before."""
        return await self._likes.delete_one(eq(Like.id, f"{post_id}/{user_id}"))

    async def liked_by(self, user_id: str, post_ids: Sequence[str]) -> set[str]:
        """Return which of the posts a user likes."""
        found = await self._likes.get_many([f"{post_id}/{user_id}" for post_id in post_ids])
        return {like.post_id for like in found.values()}

    async def posts(self, user_id: str, wanted: PostFilter, page: Page) -> list[Liked]:
        """Return the posts that a user likes, the latest liked first, without their bodies."""
        if wanted.nothing:
            return []
        found = await self._likes.aggregate(
            [*_joined(user_id, wanted, page.after), {"$limit": page.limit}]
        )
        posts = self._posts.read(each["post"] for each in found)
        return list(zip(posts, (each["place"] for each in found), strict=True))

    async def count(self, user_id: str, wanted: PostFilter) -> int:
        """Count what `posts` finds on all pages."""
        if wanted.nothing:
            return 0
        counted = await self._likes.aggregate([*_joined(user_id, wanted, ()), {"$count": "n"}])
        return counted[0]["n"] if counted else 0

    async def erase(self, key: str, id_: str, limit: int) -> list[str]:
        """Delete some likes, by `post_id` or `user_id`; return the ids of the posts."""
        query = eq(getattr(Like, key), id_)
        some = await self._likes.find(query, sort=[("_id", 1)], limit=limit)
        await self._likes.delete_many(in_(Like.id, [like.id for like in some]))
        return [like.post_id for like in some]

    async def create_indexes(self) -> None:
        """Create what the queries need."""
        await self._likes.create_indexes()


def _joined(user_id: str, wanted: PostFilter, after: Sequence[Any]) -> list[dict[str, Any]]:
    """The likes of a user with their posts, as far as those are wanted."""
    match: dict[str, Any] = {"user_id": user_id}
    if after:
        match["place"] = {"$lt": after[0]}
    posts = {
        "from": "posts",
        "localField": "post_id",
        "foreignField": "_id",
        "as": "post",
        "pipeline": [
            {"$match": {"$and": [dict(query) for query in wanted.queries()]}},
            {"$project": {"body": 0}},
        ],
    }
    return [{"$match": match}, {"$sort": {"place": -1}}, {"$lookup": posts}, {"$unwind": "$post"}]
