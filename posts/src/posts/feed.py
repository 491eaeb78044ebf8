"""The feed: the rpc ListFeed."""

import asyncio
import heapq
from dataclasses import dataclass
from itertools import islice
from typing import Final

from postbus.posts.v1 import ListFeedRequest, ListFeedResponse, PostsServiceBase
from posts.authors import AuthorProjection
from posts.models import Post
from posts.post_filters import NEWEST, PostFilter
from posts.post_search import PostSearch
from posts.presenter import Presenter
from shared.bus import MessagePattern
from shared.context import Context
from shared.data.pages import Pages

__all__ = ["FeedHandlers"]

_AUTHORS_PER_QUERY: Final = 100
"""MongoDB merges this many sorted lists. With more authors it would read and sort all posts."""


@dataclass(frozen=True, slots=True)
class FeedHandlers:
    """The handler of ListFeed."""

    search: PostSearch
    authors: AuthorProjection
    presenter: Presenter
    pages: Pages

    @MessagePattern(PostsServiceBase.list_feed)
    async def list_feed(self, request: ListFeedRequest, context: Context) -> ListFeedResponse:
        """Return a page of the posts of the users that the caller follows."""
        ids, page = await self.authors.followed_by_caller(context), self.pages.of(request)
        feeds = [
            PostFilter(author_ids=ids[first : first + _AUTHORS_PER_QUERY])
            for first in range(0, len(ids), _AUTHORS_PER_QUERY)
        ]
        found = await asyncio.gather(*(self.search.find(feed, page, NEWEST) for feed in feeds))
        posts = _latest([posts for posts, _ in found], page.size)
        more = any(next_ for _, next_ in found) or sum(len(each) for each, _ in found) > page.size
        return ListFeedResponse(
            posts=await self.presenter.posts(posts, context),
            next_page_token=page.token(NEWEST.position(posts[-1])) if more else "",
            total=await page.total(self.search.count_all, feeds, NEWEST),
        )


def _latest(lists: list[list[Post]], limit: int) -> list[Post]:
    """Merge lists that are sorted in descending order."""
    return list(islice(heapq.merge(*lists, key=NEWEST.position, reverse=True), limit))
