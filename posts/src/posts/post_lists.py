"""Handlers of the rpcs of PostsService that list posts."""

import asyncio
import heapq
from dataclasses import dataclass
from itertools import islice
from typing import Final

from postbus.posts.v1 import (
    ListFeedRequest,
    ListFeedResponse,
    ListPostsRequest,
    ListPostsResponse,
    PostOrder,
    PostsServiceBase,
    PostStatus,
)
from posts.authors import AuthorProjection
from posts.likes import LikeRepository
from posts.models import DRAFT, PUBLISHED, Post
from posts.post_filters import NEWEST, OLDEST, UPDATED, Order, PostFilter
from posts.post_search import PostSearch
from posts.post_texts import is_id
from posts.presenter import Presenter
from posts.stored_times import to_micros
from shared.bus import MessagePattern
from shared.context import Context
from shared.data.pages import Pages

__all__ = ["PostListHandlers"]

_AUTHORS_PER_QUERY: Final = 100
"""MongoDB merges this many sorted lists. With more authors it would read and sort all posts."""


@dataclass(frozen=True, slots=True)
class PostListHandlers:
    """Handlers of lists of posts. Listed posts have no body, which bounds the size of a page."""

    search: PostSearch
    likes: LikeRepository
    authors: AuthorProjection
    presenter: Presenter
    pages: Pages

    @MessagePattern(PostsServiceBase.list_posts)
    async def list_posts(self, request: ListPostsRequest, context: Context) -> ListPostsResponse:
        """Return a page of the posts that match the filter; liked posts in the order of likes."""
        wanted, page = await self._filter(request, context), self.pages.of(request)
        if request.liked_by:
            user_id = await self._user_id(request.liked_by)
            posts, next_ = await self.likes.posts(user_id, wanted, page)
            total = await page.total(self.likes.count_posts, user_id, wanted)
        else:
            order = _order(request)
            posts, next_ = await self.search.find(wanted, page, order)
            total = await page.total(self.search.count, wanted, order)
        return ListPostsResponse(
            posts=await self.presenter.posts(posts, context),
            next_page_token=page.token(next_) if next_ else "",
            total=total,
        )

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

    async def _filter(self, request: ListPostsRequest, context: Context) -> PostFilter:
        """Return the filter of the request. Drafts are limited to the caller's own."""
        drafts = request.status == PostStatus.DRAFT
        authors = [request.author_id.lower()] if request.author_id else []
        if request.author:
            authors.append(await self._user_id(request.author))
        if drafts:
            authors.append(context.user_id)
        common = authors[:1] if len(set(authors)) == 1 else []
        since = request.updated_since
        return PostFilter(
            status=DRAFT if drafts else PUBLISHED,
            author_ids=common if authors else None,
            tag=request.tag,
            q=request.q,
            updated_since=None if since is None else to_micros(since),
        )

    async def _user_id(self, user: str) -> str:
        """Return the id of the user with this name or id, or an empty string."""
        return user.lower() if is_id(user) else await self.authors.find_id(user) or ""


def _order(request: ListPostsRequest) -> Order:
    if request.updated_since is not None:
        return UPDATED
    return OLDEST if request.order == PostOrder.OLDEST else NEWEST


def _latest(lists: list[list[Post]], limit: int) -> list[Post]:
    """Merge lists that are sorted in descending order."""
    return list(islice(heapq.merge(*lists, key=NEWEST.position, reverse=True), limit))
