"""Comments: the rpcs of CommentsService, and the documents in MongoDB."""

from dataclasses import dataclass

from betterproto.lib.google.protobuf import Empty
from odmantic.query import and_, eq, lt
from uuid_utils.compat import uuid7

from postbus import reasons
from postbus.posts.v1 import (
    CommentCreated,
    CommentDeleted,
    CommentsServiceBase,
    CommentUpdated,
    CreateCommentRequest,
    CreateCommentResponse,
    DeleteCommentRequest,
    GetCommentRequest,
    GetCommentResponse,
    ListCommentsRequest,
    ListCommentsResponse,
    UpdateCommentRequest,
    UpdateCommentResponse,
)
from posts.authors import AuthorProjection, author_message
from posts.locks import lock
from posts.models import Comment
from posts.post_repository import PostRepository
from posts.presenter import Presenter, comment_message
from posts.rules import require_published, require_readable
from posts.stored_times import now
from shared.bus import MessagePattern, publish
from shared.context import Context
from shared.data.mongo_database import Mongo
from shared.data.pages import Page, Pages, Position
from shared.errors import ServiceError, require_version, version_mismatch

__all__ = ["CommentHandlers", "CommentRepository"]


def _position(comment: Comment) -> Position:
    """Return the sort key of a comment: ids increase with time."""
    return (comment.id,)


class CommentRepository:
    """Stores and finds comments."""

    def __init__(self, mongo: Mongo) -> None:
        self._comments = mongo.collection(Comment)

    async def add(self, comment: Comment) -> None:
        """Store a new comment."""
        await self._comments.insert(comment)

    async def get(self, comment_id: str) -> Comment | None:
        """Return the comment with this id, or None."""
        return await self._comments.get(comment_id)

    async def lock(self, comment_id: str) -> Comment | None:
        """Lock a comment, see `posts.locks`, and return it; None if it does not exist."""
        return await self._comments.update_one(eq(Comment.id, comment_id), lock())

    async def of_post(self, post_id: str, page: Page) -> list[Comment]:
        """Return comments on a post, the latest first."""
        query = eq(Comment.post_id, post_id)
        if page.after:
            query = and_(query, lt(Comment.id, page.after[0]))
        return await self._comments.find(query, sort=[("_id", -1)], limit=page.limit)

    async def update(self, comment: Comment, body: str) -> Comment | None:
        """Change the text of a comment and return it; None if its version is no longer current."""
        query = and_(eq(Comment.id, comment.id), eq(Comment.version, comment.version))
        changes = {"$set": {"body": body, "updated_at": now()}, "$inc": {"version": 1}}
        return await self._comments.update_one(query, changes)

    async def delete(self, comment_id: str) -> None:
        """Delete a comment."""
        await self._comments.delete_one(eq(Comment.id, comment_id))

    async def delete_batch(self, field: str, id_: str, limit: int) -> list[Comment]:
        """Delete up to `limit` comments by `post_id` or `author_id`; return them."""
        return await self._comments.delete_batch(eq(getattr(Comment, field), id_), limit)


@dataclass(frozen=True, slots=True)
class CommentHandlers:
    """Handlers of comments."""

    comments: CommentRepository
    posts: PostRepository
    authors: AuthorProjection
    presenter: Presenter
    pages: Pages

    @MessagePattern(CommentsServiceBase.create_comment)
    async def create_comment(
        self, request: CreateCommentRequest, context: Context
    ) -> CreateCommentResponse:
        """Store and publish a comment on a published post."""
        author = await self.authors.author_of_caller(context)
        post = require_published(await self.posts.get(request.post_id))
        comment = _new_comment(request.body, post.id, author.id)
        message = comment_message(comment, author_message(author.id, author))
        await self.comments.add(comment)
        await publish(
            CommentCreated(comment_id=comment.id, comment=message, post_author_id=post.author_id)
        )
        await self.posts.add_to_count(post.id, "comment_count", 1)
        return CreateCommentResponse(comment=message)

    @MessagePattern(CommentsServiceBase.list_comments)
    async def list_comments(
        self, request: ListCommentsRequest, context: Context
    ) -> ListCommentsResponse:
        """Return a page of the comments on a post that the caller may read."""
        post = require_readable(await self.posts.get(request.post_id), context)
        page = self.pages.of(request)
        comments, token = page.cut(await self.comments.of_post(post.id, page), _position)
        return ListCommentsResponse(
            comments=await self.presenter.comments(comments, context),
            next_page_token=token,
            total=post.comment_count if request.include_total else None,
        )

    @MessagePattern(CommentsServiceBase.get_comment)
    async def get_comment(self, request: GetCommentRequest, context: Context) -> GetCommentResponse:
        """Return a comment on a post that the caller may read."""
        comment = await self._get(request.id)
        require_readable(await self.posts.get(comment.post_id), context)
        return GetCommentResponse(comment=await self.presenter.comment(comment, context))

    @MessagePattern(CommentsServiceBase.update_comment)
    async def update_comment(
        self, request: UpdateCommentRequest, context: Context
    ) -> UpdateCommentResponse:
        """Change the text of the caller's comment."""
        comment = await self._get(request.id)
        require_published(await self.posts.get(comment.post_id))
        if comment.author_id != context.user_id:
            raise _not_the_author()
        require_version(comment.version, request.expected_version)
        if request.body == comment.body:
            return UpdateCommentResponse(comment=await self.presenter.comment(comment, context))
        changed = await self.comments.update(comment, request.body)
        if changed is None:
            raise version_mismatch()
        message = await self.presenter.comment(changed, context)
        await publish(CommentUpdated(comment_id=comment.id, comment=message))
        return UpdateCommentResponse(comment=message)

    @MessagePattern(CommentsServiceBase.delete_comment)
    async def delete_comment(self, request: DeleteCommentRequest, context: Context) -> Empty:
        """Delete a comment that the caller wrote or that is on a post of the caller."""
        comment = await self._get(request.id)
        post = await self.posts.get(comment.post_id)
        if context.user_id not in (comment.author_id, post and post.author_id):
            raise _not_the_author()
        require_version(comment.version, request.expected_version)
        await self.comments.delete(comment.id)
        await publish(CommentDeleted(comment_id=comment.id, post_id=comment.post_id))
        await self.posts.add_to_count(comment.post_id, "comment_count", -1)
        return Empty()

    async def _get(self, comment_id: str) -> Comment:
        comment = await self.comments.get(comment_id.lower())
        if comment is None:
            raise ServiceError(reasons.COMMENT_NOT_FOUND, "The comment does not exist.")
        return comment


def _new_comment(body: str, post_id: str, author_id: str) -> Comment:
    created = now()
    return Comment(
        id=str(uuid7()),
        post_id=post_id,
        author_id=author_id,
        body=body,
        created_at=created,
        updated_at=created,
    )


def _not_the_author() -> ServiceError:
    return ServiceError(
        reasons.NOT_THE_AUTHOR,
        "Only its author may change a comment. The author of the post may delete it, too.",
    )
