"""The database queries of the measured reads, by the drivers alone.

They are the lower bound: no models, no authors or likes of the posts, no envelopes.
"""

import asyncio
import heapq
from itertools import islice
from typing import Any, Final

import asyncpg
from pymongo.asynchronous.database import AsyncDatabase

__all__ = ["Queries"]

_UNLISTED: Final = {"body": 0, "slugs": 0, "tag_keys": 0, "words": 0}
_LATEST: Final = [("place", -1)]
_COUNT: Final = (
    "SELECT count(*) FROM"
    " (SELECT id FROM users WHERE words @@ to_tsquery('simple', $1) LIMIT 2001) AS counted"
)
_MANY: Final = (
    "SELECT * FROM users WHERE words @@ to_tsquery('simple', $1) ORDER BY lower(username) LIMIT 21"
)
_FEW: Final = (
    "WITH found AS MATERIALIZED (SELECT id FROM users WHERE words @@ to_tsquery('simple', $1))"
    " SELECT users.* FROM users JOIN found USING (id) ORDER BY lower(username) LIMIT 21"
)
_FOLLOWED: Final = (
    "SELECT followed_id FROM follows WHERE follower_id = $1"
    " ORDER BY followed_at DESC, followed_id DESC LIMIT 5000"
)


class Queries:
    """The queries of the four reads."""

    def __init__(self, pool: asyncpg.Pool, database: AsyncDatabase[dict[str, Any]]) -> None:
        self._pool = pool
        self._posts = database["posts"]

    async def get_post(self, id_: str) -> None:
        """Read one post by its id."""
        await self._posts.find_one({"_id": id_})

    async def list_posts(self, tag: str) -> None:
        """Read the first page of a tag."""
        query = {"status": "published", "tag_keys": tag}
        await self._posts.find(query, _UNLISTED).sort(_LATEST).limit(21).to_list()

    async def list_feed(self, user_id: str) -> None:
        """Read the users that a user follows, and the first page of their posts."""
        rows = await self._pool.fetch(_FOLLOWED, user_id)
        ids = [row[0] for row in rows]
        pages = await asyncio.gather(
            *(self._feed(ids[first : first + 100]) for first in range(0, len(ids), 100))
        )
        list(islice(heapq.merge(*pages, key=lambda post: str(post["place"]), reverse=True), 21))

    async def _feed(self, author_ids: list[str]) -> list[dict[str, Any]]:
        query = {"status": "published", "author_id": {"$in": author_ids}}
        return await self._posts.find(query, _UNLISTED).sort(_LATEST).limit(21).to_list()

    async def search_users(self, prefix: str) -> None:
        """Read the first page of users with a name that begins with `prefix`."""
        words = f"'{prefix}':*"
        few = await self._pool.fetchval(_COUNT, words) <= 2000
        await self._pool.fetch(_FEW if few else _MANY, words)
