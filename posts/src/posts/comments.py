"""Comments: the rpcs of CommentsService, and the documents in MongoDB."""

from dataclasses import dataclass

from betterproto.lib.google.protobuf import Empty
from odmantic.query import and_, eq
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
from posts.models import Comment
from posts.post_repository import PostRepository
from posts.presenter import Presenter, comment_message
from posts.repository import Repository
from posts.rules import require_published, require_readable
from posts.stored_times import now
from shared.bus import MessagePattern, publish
from shared.context import Context
from shared.data.mongo_database import Mongo
from shared.data.pages import Page, Pages
from shared.errors import ServiceError, require_version, version_mismatch

__all__ = ["CommentHandlers", "CommentRepository"]


class CommentRepository(Repository[Comment]):
    """Stores and finds comments. Their ids increase with time."""

    def __init__(self, mongo: Mongo) -> None:
        super().__init__(mongo, Comment)

    async def of_post(self, post_id: str, page: Page) -> list[Comment]:
        """Return comments on a post, the latest first."""
        return await self.latest(page, Comment.id, eq(Comment.post_id, post_id))

    async def update(self, comment: Comment, body: str) -> Comment | None:
        """Change the text of a comment and return it; None if its version is no longer current."""
        query = and_(eq(Comment.id, comment.id), eq(Comment.version, comment.version))
        changes = {"$set": {"body": body, "updated_at": now()}, "$inc": {"version": 1}}
        return await self.update_one(query, changes)


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
        await self.comments.insert(comment)
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
        found = await self.comments.of_post(post.id, page)
        comments, token = page.cut(found, lambda comment: (comment.id,))
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
        await self.comments.delete_one(eq(Comment.id, comment.id))
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
