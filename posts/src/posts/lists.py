"""Lists of posts and tags: the rpcs of PostsService in proto/postbus/posts/v1/posts.proto that find
many.
"""

import asyncio
import heapq
from dataclasses import dataclass
from itertools import islice
from typing import Final

from postbus.posts.v1 import (
    ListFeedRequest,
    ListFeedResponse,
    ListLikersRequest,
    ListLikersResponse,
    ListPostsRequest,
    ListPostsResponse,
    ListTagsRequest,
    ListTagsResponse,
    PostOrder,
    PostsServiceBase,
    PostStatus,
)
from postbus.posts.v1 import Tag as TagMessage
from posts.author_cards import AuthorCards
from posts.filters import NEWEST, OLDEST, UPDATED, Order, PostFilter
from posts.likes import LikeRepository, liker_position
from posts.models import DRAFT, PUBLISHED, Post
from posts.repository import PostRepository
from posts.rules import readable
from posts.search import PostSearch
from posts.tags import TagRepository
from posts.texts import is_id
from posts.times import to_micros
from posts.views import Views
from shared.bus import MessagePattern
from shared.context import Context
from shared.data.pages import Page, Pages

__all__ = ["ListHandlers"]

_AUTHORS_AT_ONCE: Final = 100
"""MongoDB merges so many sorted lists; of more it would read all posts, and then sort them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListHandlers:
    """Many posts. None has its body: a page would have no bounds."""

    posts: PostRepository
    search: PostSearch
    likes: LikeRepository
    tags: TagRepository
    authors: AuthorCards
    views: Views
    pages: Pages

    @MessagePattern(PostsServiceBase.list_posts)
    async def list_posts(self, request: ListPostsRequest, context: Context) -> ListPostsResponse:
        """Return a page of the posts that fit."""
        wanted, page = await self._wanted(request, context), self.pages.of(request)
        if request.liked_by:
            return await self._list_liked(request, wanted, page, context)
        order = _order(request)
        posts, rest = await self.search.find(wanted, page, order)
        return ListPostsResponse(
            posts=await self.views.posts(posts, context),
            next_page_token=page.token(rest) if rest else "",
            total=await self.search.count(wanted, order) if request.include_total else None,
        )

    async def _list_liked(
        self, request: ListPostsRequest, wanted: PostFilter, page: Page, context: Context
    ) -> ListPostsResponse:
        """Return a page of the posts that a user likes, in the order of the likes."""
        user_id = await self._id_of(request.liked_by)
        posts, rest = await self.likes.posts(user_id, wanted, page)
        return ListPostsResponse(
            posts=await self.views.posts(posts, context),
            next_page_token=page.token(rest) if rest else "",
            total=await self.likes.count(user_id, wanted) if request.include_total else None,
        )

    @MessagePattern(PostsServiceBase.list_feed)
    async def list_feed(self, request: ListFeedRequest, context: Context) -> ListFeedResponse:
        """Return a page of the posts of those whom the caller follows."""
        ids, page = await self.authors.followed_by_caller(context), self.pages.of(request)
        feeds = [
            PostFilter(author_ids=ids[first : first + _AUTHORS_AT_ONCE])
            for first in range(0, len(ids), _AUTHORS_AT_ONCE)
        ]
        found = await asyncio.gather(*(self.search.find(feed, page, NEWEST) for feed in feeds))
        posts = _latest([posts for posts, _ in found], page.size)
        more = any(rest for _, rest in found) or sum(len(each) for each, _ in found) > page.size
        count = self.search.count_all
        return ListFeedResponse(
            posts=await self.views.posts(posts, context),
            next_page_token=page.token(NEWEST.position(posts[-1])) if more else "",
            total=await count(feeds, NEWEST) if request.include_total else None,
        )

    @MessagePattern(PostsServiceBase.list_likers)
    async def list_likers(self, request: ListLikersRequest, context: Context) -> ListLikersResponse:
        """Return a page of the users who like a post that the caller may read."""
        post = readable(await self.posts.get(request.id), context)
        page = self.pages.of(request)
        likes, token = page.cut(await self.likes.of_post(post.id, page), liker_position)
        seen = await self.authors.seen((like.user_id for like in likes), context)
        return ListLikersResponse(
            likers=[seen.authors[like.user_id] for like in likes],
            next_page_token=token,
            total=post.like_count if request.include_total else None,
        )

    @MessagePattern(PostsServiceBase.list_tags)
    async def list_tags(self, request: ListTagsRequest, _context: Context) -> ListTagsResponse:
        """Return a page of tags."""
        page = self.pages.of(request)
        tags, token = page.cut(
            await self.tags.most_used(page), lambda tag: (tag.post_count, tag.id)
        )
        return ListTagsResponse(
            tags=[TagMessage(name=tag.name, post_count=tag.post_count) for tag in tags],
            next_page_token=token,
            total=await self.tags.total() if request.include_total else None,
        )

    async def _wanted(self, request: ListPostsRequest, context: Context) -> PostFilter:
        """Return what is asked for; of drafts nobody sees but their own."""
        drafts = request.status == PostStatus.DRAFT
        only = [request.author_id.lower()] if request.author_id else []
        if request.author:
            only.append(await self._id_of(request.author))
        if drafts:
            only.append(context.user_id)
        same = only[:1] if len(set(only)) == 1 else []
        since = request.updated_since
        return PostFilter(
            status=DRAFT if drafts else PUBLISHED,
            author_ids=same if only else None,
            tag=request.tag,
            q=request.q,
            updated_since=None if since is None else to_micros(since),
        )

    async def _id_of(self, user: str) -> str:
        """Return the id of the user with this name or id; empty if there is none of the name."""
        return user.lower() if is_id(user) else await self.authors.id_of(user) or ""


def _order(request: ListPostsRequest) -> Order:
    if request.updated_since is not None:
        return UPDATED
    return OLDEST if request.order == PostOrder.OLDEST else NEWEST


def _latest(lists: list[list[Post]], limit: int) -> list[Post]:
    """Merge lists that begin with the latest."""
    return list(islice(heapq.merge(*lists, key=NEWEST.position, reverse=True), limit))
