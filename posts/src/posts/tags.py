"""Tags: the rpc ListTags, and the documents in MongoDB, which count published posts."""

from collections.abc import Mapping
from dataclasses import dataclass

from odmantic.query import and_, eq, gt, lt, or_

from postbus.posts.v1 import ListTagsRequest, ListTagsResponse, PostsServiceBase
from postbus.posts.v1 import Tag as TagMessage
from posts.models import Tag
from posts.repository import COUNTED, Repository
from shared.bus import MessagePattern
from shared.context import Context
from shared.data.mongo_counters import CountChange
from shared.data.mongo_database import Mongo
from shared.data.pages import Page, Pages

__all__ = ["TagHandlers", "TagRepository"]


def _change(key: str, name: str, step: int) -> CountChange:
    """Return the change of a tag's counter; a tag exists while it has posts."""
    return CountChange(
        collection="tags", id=key, counter="post_count", step=step, new={"name": name}
    )


class TagRepository(Repository[Tag]):
    """Counts tags, in the transaction that changes a post."""

    def __init__(self, mongo: Mongo) -> None:
        super().__init__(mongo, Tag)
        self._counters = mongo.counters

    async def count_posts(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Update the counters after a change of the tags of a published post; both are by key."""
        removed = [_change(key, name, -1) for key, name in before.items() if key not in after]
        added = [_change(key, name, 1) for key, name in after.items() if key not in before]
        await self._counters.add(removed + added)

    async def most_used(self, page: Page) -> list[Tag]:
        """Return tags, the ones with the most posts first."""
        queries = [gt(Tag.post_count, 0)]
        if page.after:
            count, key = page.after
            fewer = lt(Tag.post_count, count)
            queries.append(or_(fewer, and_(eq(Tag.post_count, count), gt(Tag.id, key))))
        sort = [("post_count", -1), ("_id", 1)]
        return await self.find(*queries, sort=sort, limit=page.limit)

    async def total(self) -> int | None:
        """Count the tags; None if there are more than COUNTED."""
        return await self.count_at_most(COUNTED, gt(Tag.post_count, 0))


@dataclass(frozen=True, slots=True)
class TagHandlers:
    """Handlers of tags."""

    tags: TagRepository
    pages: Pages

    @MessagePattern(PostsServiceBase.list_tags)
    async def list_tags(self, request: ListTagsRequest, _context: Context) -> ListTagsResponse:
        """Return a page of tags, the ones with the most posts first."""
        page = self.pages.of(request)
        tags, token = page.cut(
            await self.tags.most_used(page), lambda tag: (tag.post_count, tag.id)
        )
        return ListTagsResponse(
            tags=[TagMessage(name=tag.name, post_count=tag.post_count) for tag in tags],
            next_page_token=token,
            total=await page.total(self.tags.total),
        )
