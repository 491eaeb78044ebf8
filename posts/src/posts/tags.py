"""How many published posts have which tags, in MongoDB."""

from collections.abc import Mapping

from odmantic.query import and_, eq, gt, lt, or_

from posts.models import Tag
from shared.mongo import Mongo
from shared.pages import Page

__all__ = ["TagRepository"]


class TagRepository:
    """Counts tags, in the transaction that changes a post."""

    def __init__(self, mongo: Mongo) -> None:
        self._tags = mongo.collection(Tag)

    async def count(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Count a published post whose tags were `before` and are `after`, by key."""
        for key in sorted(before.keys() ^ after.keys()):  # in one order: fewer conflicts
            await self._add(key, before.get(key) or after[key], 1 if key in after else -1)

    async def _add(self, key: str, name: str, step: int) -> None:
        changes = {"$inc": {"post_count": step}}
        if await self._tags.update_one(eq(Tag.id, key), changes) is None:
            await self._tags.insert(Tag(id=key, name=name, post_count=step))

    async def most_used(self, page: Page) -> list[Tag]:
        """Return tags, those of most posts first."""
        queries = [gt(Tag.post_count, 0)]
        if page.after:
            count, key = page.after
            fewer = lt(Tag.post_count, count)
            queries.append(or_(fewer, and_(eq(Tag.post_count, count), gt(Tag.id, key))))
        sort = [("post_count", -1), ("_id", 1)]
        return await self._tags.find(*queries, sort=sort, limit=page.limit)

    async def total(self) -> int:
        """Count the tags."""
        return await self._tags.count(gt(Tag.post_count, 0))

    async def create_indexes(self) -> None:
        """Create what the queries need."""
        await self._tags.create_indexes()
