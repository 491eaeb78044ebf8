"""Handlers of the rpcs of PostsService that read, change and list posts."""

from dataclasses import dataclass
from typing import Any, Final

from betterproto.lib.google.protobuf import Empty
from uuid_utils.compat import uuid7

from postbus import reasons
from postbus.posts.v1 import (
    CreatePostRequest,
    CreatePostResponse,
    DeletePostRequest,
    GetPostRequest,
    GetPostResponse,
    ListPostsRequest,
    ListPostsResponse,
    PostCreated,
    PostDeleted,
    PostOrder,
    PostPublished,
    PostsServiceBase,
    PostStatus,
    PostUnpublished,
    PostUpdated,
    PublishPostRequest,
    PublishPostResponse,
    UnpublishPostRequest,
    UnpublishPostResponse,
    UpdatePostRequest,
    UpdatePostResponse,
)
from posts.authors import AuthorProjection, author_message
from posts.likes import LikeRepository
from posts.models import DRAFT, PUBLISHED, Post
from posts.post_filters import NEWEST, OLDEST, UPDATED, Order, PostFilter
from posts.post_repository import PostRepository
from posts.post_search import PostSearch
from posts.post_texts import distinct_tags, is_id
from posts.presenter import Presenter, post_message
from posts.rules import require_author, require_readable
from posts.stored_times import now, sort_key, to_micros
from shared.bus import MessagePattern, publish
from shared.context import Context
from shared.data.pages import Page, Pages
from shared.errors import invalid_field
from shared.field_masks import require_paths

__all__ = ["PostHandlers", "PostListHandlers"]

_CHANGEABLE: Final = frozenset({"title", "summary", "body", "tags"})


@dataclass(frozen=True, slots=True)
class PostHandlers:
    """Handlers for a single post. Drafts publish no events."""

    posts: PostRepository
    authors: AuthorProjection
    presenter: Presenter

    @MessagePattern(PostsServiceBase.create_post)
    async def create_post(self, request: CreatePostRequest, context: Context) -> CreatePostResponse:
        """Store a post, and publish it unless it is a draft."""
        author = await self.authors.author_of_caller(context)
        post = _new_post(request, author.id)
        if not post.published:  # without an event, no consumer sees that the author is deleted
            await self.authors.lock_account(context)
        await self.posts.add(post)
        message = post_message(post, author_message(author.id, author))
        if post.published:
            await publish(PostCreated(post_id=post.id, post=message))
        return CreatePostResponse(post=message)

    @MessagePattern(PostsServiceBase.get_post)
    async def get_post(self, request: GetPostRequest, context: Context) -> GetPostResponse:
        """Return a post that the caller may read."""
        state = await self.presenter.read_post(request.id, context)
        post = require_readable(state.post, context)
        return GetPostResponse(post=await self.presenter.post(post, context, state))

    @MessagePattern(PostsServiceBase.update_post)
    async def update_post(self, request: UpdatePostRequest, context: Context) -> UpdatePostResponse:
        """Update the fields in the mask that have a new value."""
        post = await self._own_post(request.id, context, request.expected_version)
        changes = _changes(request, post)
        if changes:
            await self.posts.update(post, changes)
        message = await self.presenter.post(post, context)
        if changes and post.published:
            event_post = post_message(post, message.author)
            await publish(PostUpdated(post_id=post.id, post=event_post))
        return UpdatePostResponse(post=message)

    @MessagePattern(PostsServiceBase.delete_post)
    async def delete_post(self, request: DeletePostRequest, context: Context) -> Empty:
        """Delete the post. The consumer of the event deletes its comments and likes."""
        post = await self._own_post(request.id, context, request.expected_version)
        await self.posts.delete(post)
        if post.published_at is not None:
            await publish(
                PostDeleted(post_id=post.id, author_id=post.author_id, version=post.version + 1)
            )
        return Empty()

    @MessagePattern(PostsServiceBase.publish_post)
    async def publish_post(
        self, request: PublishPostRequest, context: Context
    ) -> PublishPostResponse:
        """Publish a draft. Lists sort it by the time of its first publication."""
        post = await self._own_post(request.id, context, request.expected_version)
        was_draft = not post.published
        if was_draft:
            at = post.published_at or now()
            changes = {"status": PUBLISHED, "published_at": at, "place": sort_key(at, post.id)}
            await self.posts.update(post, changes)
        message = await self.presenter.post(post, context)
        if was_draft:
            event_post = post_message(post, message.author)
            await publish(PostPublished(post_id=post.id, post=event_post))
        return PublishPostResponse(post=message)

    @MessagePattern(PostsServiceBase.unpublish_post)
    async def unpublish_post(
        self, request: UnpublishPostRequest, context: Context
    ) -> UnpublishPostResponse:
        """Turn a post into a draft. It keeps its likes and comments."""
        post = await self._own_post(request.id, context, request.expected_version)
        if post.published:
            await self.posts.update(post, {"status": DRAFT})
            await publish(
                PostUnpublished(post_id=post.id, author_id=post.author_id, version=post.version)
            )
        return UnpublishPostResponse(post=await self.presenter.post(post, context))

    async def _own_post(self, name: str, context: Context, expected_version: int) -> Post:
        return require_author(await self.posts.get(name), context, expected_version)


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
        """Return a page of the posts that match the filter."""
        wanted, page = await self._filter(request, context), self.pages.of(request)
        if request.liked_by:
            return await self._list_liked(request.liked_by, wanted, page, context)
        order = _order(request)
        posts, next_ = await self.search.find(wanted, page, order)
        return ListPostsResponse(
            posts=await self.presenter.posts(posts, context),
            next_page_token=page.token(next_) if next_ else "",
            total=await page.total(self.search.count, wanted, order),
        )

    async def _list_liked(
        self, user: str, wanted: PostFilter, page: Page, context: Context
    ) -> ListPostsResponse:
        """Return a page of the posts that a user likes, in the order of the likes."""
        user_id = await self._user_id(user)
        posts, next_ = await self.likes.posts(user_id, wanted, page)
        return ListPostsResponse(
            posts=await self.presenter.posts(posts, context),
            next_page_token=page.token(next_) if next_ else "",
            total=await page.total(self.likes.count, user_id, wanted),
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


def _new_post(request: CreatePostRequest, author_id: str) -> Post:
    is_draft = request.status == PostStatus.DRAFT
    id_, created = str(uuid7()), now()
    return Post(
        id=id_,
        author_id=author_id,
        slug="",
        slugs=[],
        title=request.title,
        summary=request.summary,
        body=request.body,
        tags=request.tags,
        tag_keys=[],
        words=[],
        status=DRAFT if is_draft else PUBLISHED,
        place=sort_key(created, id_),
        created_at=created,
        updated_at=created,
        published_at=None if is_draft else created,
    )


def _changes(request: UpdatePostRequest, post: Post) -> dict[str, Any]:
    """Return the fields in the mask that have a new value."""
    paths = require_paths(request.update_mask, _CHANGEABLE)
    if "title" in paths and not request.title:
        raise invalid_field(reasons.TITLE_MISSING, "title", "required", "A post needs a title.")
    values: dict[str, Any] = {path: getattr(request, path) or "" for path in paths - {"tags"}}
    if "tags" in paths:
        values["tags"] = list(distinct_tags(request.tags).values())
    return {path: value for path, value in values.items() if value != getattr(post, path)}


def _order(request: ListPostsRequest) -> Order:
    if request.updated_since is not None:
        return UPDATED
    return OLDEST if request.order == PostOrder.OLDEST else NEWEST
