"""What users say of posts: one method per rpc of CommentsService in
proto/postbus/posts/v1/comments.proto.
"""

from dataclasses import dataclass

from betterproto.lib.google.protobuf import Empty
from uuid_utils.compat import uuid7

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
from posts.author_cards import AuthorCards
from posts.authors import author_message
from posts.comments import CommentRepository, position
from posts.models import Comment
from posts.repository import PostRepository
from posts.rules import published, readable
from posts.times import now
from posts.views import Views, comment_message
from shared.bus import MessagePattern, publish
from shared.context import Context
from shared.data.pages import Pages
from shared.errors import Code, ServiceError, require_version, version_mismatch

__all__ = ["CommentHandlers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommentHandlers:
    """Comments."""

    comments: CommentRepository
    posts: PostRepository
    authors: AuthorCards
    views: Views
    pages: Pages

    @MessagePattern(CommentsServiceBase.create_comment)
    async def create_comment(
        self, request: CreateCommentRequest, context: Context
    ) -> CreateCommentResponse:
        """Store the comment, then tell everyone; the counter comes last, as for likes."""
        author = await self.authors.of_caller(context)
        post = published(await self.posts.get(request.post_id))
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
        post = readable(await self.posts.get(request.post_id), context)
        page = self.pages.of(request)
        comments, token = page.cut(await self.comments.on(post.id, page), position)
        return ListCommentsResponse(
            comments=await self.views.comments(comments, context),
            next_page_token=token,
            total=post.comment_count if request.include_total else None,
        )

    @MessagePattern(CommentsServiceBase.get_comment)
    async def get_comment(self, request: GetCommentRequest, context: Context) -> GetCommentResponse:
        """Return a comment on a post that the caller may read."""
        comment = await self._comment(request.id)
        readable(await self.posts.get(comment.post_id), context)
        return GetCommentResponse(comment=await self.views.comment(comment, context))

    @MessagePattern(CommentsServiceBase.update_comment)
    async def update_comment(
        self, request: UpdateCommentRequest, context: Context
    ) -> UpdateCommentResponse:
        """Change the text of the caller's comment."""
        comment = await self._comment(request.id)
        published(await self.posts.get(comment.post_id))
        if comment.author_id != context.user_id:
            raise _not_yours()
        require_version(comment.version, request.expected_version)
        if request.body == comment.body:
            return UpdateCommentResponse(comment=await self.views.comment(comment, context))
        changed = await self.comments.change(comment, request.body, now())
        if changed is None:
            raise version_mismatch()
        message = await self.views.comment(changed, context)
        await publish(CommentUpdated(comment_id=comment.id, comment=message))
        return UpdateCommentResponse(comment=message)

    @MessagePattern(CommentsServiceBase.delete_comment)
    async def delete_comment(self, request: DeleteCommentRequest, context: Context) -> Empty:
        """Delete a comment of the caller, or on a post of the caller."""
        comment = await self._comment(request.id)
        post = await self.posts.get(comment.post_id)
        if context.user_id not in (comment.author_id, post and post.author_id):
            raise _not_yours()
        require_version(comment.version, request.expected_version)
        await self.comments.delete(comment.id)
        await publish(CommentDeleted(comment_id=comment.id, post_id=comment.post_id))
        await self.posts.add_to_count(comment.post_id, "comment_count", -1)
        return Empty()

    async def _comment(self, comment_id: str) -> Comment:
        comment = await self.comments.get(comment_id.lower())
        if comment is None:
            raise ServiceError(Code.NOT_FOUND, "COMMENT_NOT_FOUND", "There is no such comment.")
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


def _not_yours() -> ServiceError:
    return ServiceError(
        Code.PERMISSION_DENIED,
        "NOT_THE_AUTHOR",
        "Only its author may change a comment; the author of the post may delete it too.",
    )
