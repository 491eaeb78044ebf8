"""What the worker `posts` answers: one method per rpc of proto/postbus/posts/v1/posts.proto."""

from collections.abc import Sequence
from datetime import UTC, datetime

from betterproto.lib.google.protobuf import Empty
from uuid_utils.compat import uuid7

from postbus.posts.v1 import (
    Author as AuthorMessage,
)
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
    PostsServiceBase,
    PostUpdated,
    UpdatePostRequest,
    UpdatePostResponse,
)
from postbus.posts.v1 import Post as PostMessage
from posts.authors import AuthorCards
from posts.models import Author, Post
from posts.pages import page_token, read_page_token
from posts.repository import PostRepository
from shared.context import Context
from shared.errors import Code, ServiceError
from shared.messagebus import MessagePattern, publish

__all__ = ["PostHandlers"]

_DEFAULT_PAGE_SIZE = 20
_CHANGEABLE = {"title", "body"}


class PostHandlers:
    """What users write."""

    def __init__(self, posts: PostRepository, authors: AuthorCards) -> None:
        self._posts = posts
        self._authors = authors

    @MessagePattern(PostsServiceBase.create_post)
    async def create_post(self, request: CreatePostRequest, context: Context) -> CreatePostResponse:
        """Store the post, then tell everyone."""
        author = await self._authors.of_caller(context)
        now = _now()
        post = Post(
            id=str(uuid7()),
            author_id=author.id,
            title=request.title,
            body=request.body,
            created_at=now,
            updated_at=now,
        )
        await self._posts.add(post)
        message = _to_message(post, author)
        await publish(PostCreated(post_id=post.id, post=message))
        return CreatePostResponse(post=message)

    @MessagePattern(PostsServiceBase.get_post)
    async def get_post(self, request: GetPostRequest, _context: Context) -> GetPostResponse:
        """Return one post."""
        post = await self._posts.get(request.id)
        if post is None:
            raise _not_found()
        [message] = await self._with_authors([post])
        return GetPostResponse(post=message)

    @MessagePattern(PostsServiceBase.list_posts)
    async def list_posts(self, request: ListPostsRequest, _context: Context) -> ListPostsResponse:
        """Return a page, and a token for the next if there is one."""
        size = request.page_size or _DEFAULT_PAGE_SIZE
        found = await self._posts.newest(
            author_id=request.author_id,
            before=read_page_token(request.page_token),
            limit=size + 1,
        )
        page = found[:size]
        return ListPostsResponse(
            posts=await self._with_authors(page),
            next_page_token=page_token(page[-1].id) if len(found) > size else "",
        )

    @MessagePattern(PostsServiceBase.update_post)
    async def update_post(self, request: UpdatePostRequest, context: Context) -> UpdatePostResponse:
        """Change the fields that the mask names; an empty mask changes nothing."""
        changes = _changes(request)
        post = await self._posts.change(request.id, context.user_id, changes, _now())
        if post is None:
            raise await self._why_not(request.id)
        [message] = await self._with_authors([post])
        if changes:
            await publish(PostUpdated(post_id=post.id, post=message))
        return UpdatePostResponse(post=message)

    @MessagePattern(PostsServiceBase.delete_post)
    async def delete_post(self, request: DeletePostRequest, context: Context) -> Empty:
        """Delete the caller's post."""
        if not await self._posts.delete(request.id, context.user_id):
            raise await self._why_not(request.id)
        await publish(PostDeleted(post_id=request.id, author_id=context.user_id))
        return Empty()

    async def _with_authors(self, posts: Sequence[Post]) -> list[PostMessage]:
        authors = await self._authors.by_ids(post.author_id for post in posts)
        return [
            _to_message(post, authors.get(post.author_id, Author(id=post.author_id, username="")))
            for post in posts
        ]

    async def _why_not(self, post_id: str) -> ServiceError:
        """Tell a post of someone else from one that does not exist."""
        if await self._posts.get(post_id) is None:
            return _not_found()
        return ServiceError(
            Code.PERMISSION_DENIED, "NOT_THE_AUTHOR", "Only its author may change a post."
        )


def _changes(request: UpdatePostRequest) -> dict[str, str]:
    paths = set(request.update_mask.paths)
    if not paths <= _CHANGEABLE:
        raise ServiceError(
            Code.INVALID_ARGUMENT,
            "UPDATE_MASK_INVALID",
            f"Name what to change: {', '.join(sorted(_CHANGEABLE))}.",
        )
    if "title" in paths and not request.title:
        raise ServiceError(Code.INVALID_ARGUMENT, "TITLE_MISSING", "A post needs a title.")
    return {path: getattr(request, path) or "" for path in paths}


def _now() -> datetime:
    """The time as MongoDB keeps it, in milliseconds."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _not_found() -> ServiceError:
    return ServiceError(Code.NOT_FOUND, "POST_NOT_FOUND", "There is no such post.")


def _to_message(post: Post, author: Author) -> PostMessage:
    return PostMessage(
        id=post.id,
        author=AuthorMessage(id=author.id, username=author.username),
        title=post.title,
        body=post.body,
        created_at=post.created_at,
        updated_at=post.updated_at,
        version=post.version,
    )
