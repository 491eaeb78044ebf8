"""Handlers of the rpcs of PostsService that read or change one post."""

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
    PostCreated,
    PostDeleted,
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
from posts.caller_state import PostData
from posts.models import DRAFT, PUBLISHED, Post
from posts.post_repository import PostRepository
from posts.post_texts import distinct_tags, is_id
from posts.presenter import Presenter, post_message
from posts.rules import require_author, require_readable
from posts.stored_times import now, sort_key
from shared.bus import MessagePattern, publish
from shared.context import Context
from shared.errors import invalid_field
from shared.field_masks import require_paths

__all__ = ["PostHandlers"]

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
        state = await self._read(request.id, context)
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

    async def _read(self, name: str, context: Context) -> PostData:
        """Return the post with this id or slug, and the data that its message needs.

        One query if `name` is an id and there is a caller, else two.
        """
        folded = name.casefold()
        if context.caller is not None and is_id(folded):
            return await self.authors.states.read_post(folded, context.caller.user_id)
        post, author = await self.posts.with_author(name)
        return PostData(post=post, author=author)

    async def _own_post(self, name: str, context: Context, expected_version: int) -> Post:
        return require_author(await self.posts.get(name), context, expected_version)


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
