"""How many published posts have which tags, in MongoDB."""

from collections.abc import Mapping

from odmantic.query import and_, eq, gt, in_, lt, lte, or_

from posts.models import Tag
from posts.search import COUNTED
from shared.data.mongo_database import Mongo
from shared.data.pages import Page

__all__ = ["TagRepository"]


class TagRepository:
    """Counts tags, in the transaction that changes a post."""

    def __init__(self, mongo: Mongo) -> None:
        self._tags = mongo.collection(Tag)

    async def count(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Count a published post whose tags were `before` and are `after`, by key."""
        await self._add([key for key in before if key not in after], -1)
        new = {key: name for key, name in after.items() if key not in before}
        for key in await self._add(list(new), 1):
            await self._tags.insert(Tag(id=key, name=new[key], post_count=1))

    async def _add(self, keys: list[str], step: int) -> list[str]:
        """Add to counters, all at once: others wait for them. Return those that are not there."""
        if not keys:
            return []
        there = in_(Tag.id, keys)
        await self._tags.update_many(there, {"$inc": {"post_count": step}})
        if step < 0:
            await self._tags.delete_many(and_(there, lte(Tag.post_count, 0)))
            return []
        found = await self._tags.find(there, sort=[("_id", 1)], limit=len(keys))
        return sorted(set(keys) - {tag.id for tag in found})

    async def most_used(self, page: Page) -> list[Tag]:
        """Return tags, those of most posts first."""
        queries = [gt(Tag.post_count, 0)]
        if page.after:
            count, key = page.after
            fewer = lt(Tag.post_count, count)
            queries.append(or_(fewer, and_(eq(Tag.post_count, count), gt(Tag.id, key))))
        sort = [("post_count", -1), ("_id", 1)]
        return await self._tags.find(*queries, sort=sort, limit=page.limit)

    async def total(self) -> int | None:
        """Count the tags; None of more than COUNTED."""
        count = await self._tags.count(gt(Tag.post_count, 0), limit=COUNTED + 1)
        return count if count <= COUNTED else None

    async def create_indexes(self) -> None:
        """Create what the queries need."""
        await self._tags.create_indexes()
