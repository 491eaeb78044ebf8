"""What users write: the rpcs of PostsService in proto/postbus/posts/v1/posts.proto that read or
change one post.
"""

from dataclasses import dataclass
from typing import Any, Final

from betterproto.lib.google.protobuf import Empty
from uuid_utils.compat import uuid7

from postbus.posts.v1 import (
    CreatePostRequest,
    CreatePostResponse,
    DeletePostRequest,
    GetPostRequest,
    GetPostResponse,
    LikePostRequest,
    LikePostResponse,
    PostCreated,
    PostDeleted,
    PostLiked,
    PostPublished,
    PostsServiceBase,
    PostStatus,
    PostUnliked,
    PostUnpublished,
    PostUpdated,
    PublishPostRequest,
    PublishPostResponse,
    UnlikePostRequest,
    UnlikePostResponse,
    UnpublishPostRequest,
    UnpublishPostResponse,
    UpdatePostRequest,
    UpdatePostResponse,
)
from posts.author_cards import AuthorCards
from posts.authors import author_message
from posts.likes import LikeRepository
from posts.models import DRAFT, PUBLISHED, Post
from posts.repository import PostRepository
from posts.rules import own, published, readable
from posts.texts import distinct_tags
from posts.times import now, place
from posts.views import Views, post_message
from shared.bus import MessagePattern, publish
from shared.context import Context
from shared.errors import invalid_field

__all__ = ["PostHandlers"]

_CHANGEABLE: Final = {"title", "summary", "body", "tags"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PostHandlers:
    """One post. Events tell of published posts alone: nobody hears of a draft."""

    posts: PostRepository
    likes: LikeRepository
    authors: AuthorCards
    views: Views

    @MessagePattern(PostsServiceBase.create_post)
    async def create_post(self, request: CreatePostRequest, context: Context) -> CreatePostResponse:
        """Store the post, then tell everyone."""
        author = await self.authors.of_caller(context)
        post = _new_post(request, author.id)
        await self.posts.add(post)
        message = post_message(post, author_message(author.id, author))
        if post.published:
            await publish(PostCreated(post_id=post.id, post=message))
        return CreatePostResponse(post=message)

    @MessagePattern(PostsServiceBase.get_post)
    async def get_post(self, request: GetPostRequest, context: Context) -> GetPostResponse:
        """Return a post that the caller may read."""
        state = await self.views.read(request.id, context)
        post = readable(state.post, context)
        return GetPostResponse(post=await self.views.post(post, context, state))

    @MessagePattern(PostsServiceBase.update_post)
    async def update_post(self, request: UpdatePostRequest, context: Context) -> UpdatePostResponse:
        """Change the fields that the mask names and that are not so already."""
        post = own(await self.posts.get(request.id), context, request.expected_version)
        changes = _changes(request, post)
        if changes:
            await self.posts.change(post, changes)
        message = await self.views.post(post, context)
        if changes and post.published:
            shown = post_message(post, message.author)
            await publish(PostUpdated(post_id=post.id, post=shown))
        return UpdatePostResponse(post=message)

    @MessagePattern(PostsServiceBase.delete_post)
    async def delete_post(self, request: DeletePostRequest, context: Context) -> Empty:
        """Delete the post; its comments and likes go with the event."""
        post = own(await self.posts.get(request.id), context, request.expected_version)
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
        """Make a draft readable; its place in lists is when that first happened."""
        post = own(await self.posts.get(request.id), context, request.expected_version)
        new = not post.published
        if new:
            at = post.published_at or now()
            changes = {"status": PUBLISHED, "published_at": at, "place": place(at, post.id)}
            await self.posts.change(post, changes)
        message = await self.views.post(post, context)
        if new:
            shown = post_message(post, message.author)
            await publish(PostPublished(post_id=post.id, post=shown))
        return PublishPostResponse(post=message)

    @MessagePattern(PostsServiceBase.unpublish_post)
    async def unpublish_post(
        self, request: UnpublishPostRequest, context: Context
    ) -> UnpublishPostResponse:
        """Make a post a draft; it keeps its likes and comments."""
        post = own(await self.posts.get(request.id), context, request.expected_version)
        if post.published:
            await self.posts.change(post, {"status": DRAFT})
            await publish(
                PostUnpublished(post_id=post.id, author_id=post.author_id, version=post.version)
            )
        return UnpublishPostResponse(post=await self.views.post(post, context))

    @MessagePattern(PostsServiceBase.like_post)
    async def like_post(self, request: LikePostRequest, context: Context) -> LikePostResponse:
        """Like; the counter comes last, for all who like a post at once wait for each other."""
        await self.authors.require_caller(context)
        post = published(await self.posts.get(request.id))
        message = await self.views.post(post, context)
        if await self.likes.add(post.id, context.user_id):
            liked = {"post_id": post.id, "author_id": post.author_id, "user_id": context.user_id}
            await publish(PostLiked(**liked))
            message.like_count = await self.posts.add_to_count(post.id, "like_count", 1)
        message.liked = True
        return LikePostResponse(post=message)

    @MessagePattern(PostsServiceBase.unlike_post)
    async def unlike_post(self, request: UnlikePostRequest, context: Context) -> UnlikePostResponse:
        """Like no longer."""
        post = published(await self.posts.get(request.id))
        message = await self.views.post(post, context)
        if await self.likes.remove(post.id, context.user_id):
            liked = {"post_id": post.id, "author_id": post.author_id, "user_id": context.user_id}
            await publish(PostUnliked(**liked))
            message.like_count = await self.posts.add_to_count(post.id, "like_count", -1)
        message.liked = False
        return UnlikePostResponse(post=message)


def _new_post(request: CreatePostRequest, author_id: str) -> Post:
    draft = request.status == PostStatus.DRAFT
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
        status=DRAFT if draft else PUBLISHED,
        place=place(created, id_),
        created_at=created,
        updated_at=created,
        published_at=None if draft else created,
    )


def _changes(request: UpdatePostRequest, post: Post) -> dict[str, Any]:
    """Return the fields that get another value."""
    paths = set(request.update_mask.paths)
    if not paths <= _CHANGEABLE:
        message = f"Name what to change: {', '.join(sorted(_CHANGEABLE))}."
        raise invalid_field("UPDATE_MASK_INVALID", "updateMask", "field_mask.in", message)
    if "title" in paths and not request.title:
        raise invalid_field("TITLE_MISSING", "title", "required", "A post needs a title.")
    wanted: dict[str, Any] = {path: getattr(request, path) or "" for path in paths - {"tags"}}
    if "tags" in paths:
        wanted["tags"] = list(distinct_tags(request.tags).values())
    return {path: value for path, value in wanted.items() if value != getattr(post, path)}
