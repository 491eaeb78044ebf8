"""Who likes which posts, in MongoDB."""

from collections.abc import Sequence
from typing import Any, Final

from odmantic.query import and_, eq, in_, lt, lte, or_

from posts.filters import PostFilter
from posts.models import Like, Post
from posts.search import UNLISTED
from posts.times import now, place
from shared.data.mongo_database import Mongo
from shared.data.pages import Page, Position

__all__ = ["EXAMINED", "LikeRepository", "liker_position"]

EXAMINED: Final = 1000
"""Likes that one page or one total of liked posts examines, each with its post."""


def liker_position(like: Like) -> Position:
    """Return where a like stands among the likes of its post."""
    return like.place, like.id


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

    async def posts(
        self, user_id: str, wanted: PostFilter, page: Page
    ) -> tuple[list[Post], Position]:
        """Return posts that a user likes, the latest like first, without their bodies.

        Also return the position after which the next page begins, empty if this one is the last. A
        page examines EXAMINED likes, so it may be short, or empty.
        """
        if wanted.nothing:
            return [], ()
        last = await self._last(user_id, page.after)
        joined = _joined(user_id, wanted, page.after, last)
        found = await self._likes.aggregate([*joined, {"$limit": page.limit}])
        shown = found[: page.size]
        rest = (shown[-1]["place"],) if len(found) > page.size else last
        return self._posts.read(each["post"] for each in shown), rest

    async def count(self, user_id: str, wanted: PostFilter) -> int | None:
        """Count the posts that `posts` returns on all pages; None of more than EXAMINED likes."""
        if wanted.nothing:
            return 0
        if await self._last(user_id, ()):
            return None
        counted = await self._likes.aggregate([*_joined(user_id, wanted, (), ()), {"$count": "n"}])
        return counted[0]["n"] if counted else 0

    async def _last(self, user_id: str, after: Position) -> Position:
        """Return the position of the last like to examine; empty if that is the user's last."""
        query = eq(Like.user_id, user_id)
        if after:
            query = and_(query, lt(Like.place, after[0]))
        found = await self._likes.find(query, sort=[("place", -1)], skip=EXAMINED - 1, limit=1)
        return (found[0].place,) if found else ()

    async def of_post(self, post_id: str, page: Page) -> list[Like]:
        """Return likes of a post, the latest first."""
        query = eq(Like.post_id, post_id)
        if page.after:
            place, id_ = page.after
            earlier = or_(lt(Like.place, place), lt(Like.id, id_))
            query = and_(query, lte(Like.place, place), earlier)
        return await self._likes.find(query, sort=[("place", -1), ("_id", -1)], limit=page.limit)

    async def erase(self, key: str, id_: str, limit: int) -> list[str]:
        """Delete some likes, by `post_id` or `user_id`; return the ids of the posts."""
        query = eq(getattr(Like, key), id_)
        some = await self._likes.find(query, sort=[("_id", 1)], limit=limit)
        await self._likes.delete_many(in_(Like.id, [like.id for like in some]))
        return [like.post_id for like in some]

    async def create_indexes(self) -> None:
        """Create what the queries need."""
        await self._likes.create_indexes()


def _joined(
    user_id: str, wanted: PostFilter, after: Position, last: Position
) -> list[dict[str, Any]]:
    """Return the pipeline of a user's likes, from one position to another, with wanted posts."""
    match: dict[str, Any] = {"user_id": user_id}
    places = ({"$lt": after[0]} if after else {}) | ({"$gte": last[0]} if last else {})
    if places:
        match["place"] = places
    posts = {
        "from": "posts",
        "localField": "post_id",
        "foreignField": "_id",
        "as": "post",
        "pipeline": [
            {"$match": {"$and": [dict(query) for query in wanted.queries()]}},
            {"$project": dict.fromkeys(UNLISTED, 0)},
        ],
    }
    return [{"$match": match}, {"$sort": {"place": -1}}, {"$lookup": posts}, {"$unwind": "$post"}]
