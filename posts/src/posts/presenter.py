"""Messages of the contract for stored documents, with authors, as the caller sees them."""

from collections.abc import Sequence
from dataclasses import dataclass

from postbus.posts.v1 import Author as AuthorMessage
from postbus.posts.v1 import Comment as CommentMessage
from postbus.posts.v1 import Notification as NotificationMessage
from postbus.posts.v1 import NotificationKind, PostStatus
from postbus.posts.v1 import Post as PostMessage
from posts.authors import AuthorProjection
from posts.caller_state import PostData
from posts.models import Comment, Notification, Post
from posts.stored_times import from_micros
from shared.context import Context

__all__ = ["Presenter", "comment_message", "notification_message", "post_message"]


@dataclass(frozen=True, slots=True)
class Presenter:
    """Builds the messages of replies."""

    authors: AuthorProjection

    async def posts(
        self, posts: Sequence[Post], context: Context, state: PostData | None = None
    ) -> list[PostMessage]:
        """Return the messages of posts; `state` as in `post`."""
        ids, author_ids = [post.id for post in posts], [post.author_id for post in posts]
        authors = await self.authors.messages_for(author_ids, context, posts=ids, state=state)
        messages = [post_message(post, authors.by_id[post.author_id]) for post in posts]
        for message in messages if authors.liked else ():
            message.liked = message.id in authors.liked
        return messages

    async def post(
        self, post: Post, context: Context, state: PostData | None = None
    ) -> PostMessage:
        """Return the message of a post; `state` is the data read with it, if any."""
        [message] = await self.posts([post], context, state)
        return message

    async def comments(self, comments: Sequence[Comment], context: Context) -> list[CommentMessage]:
        """Return the messages of comments."""
        ids = [comment.author_id for comment in comments]
        authors = (await self.authors.messages_for(ids, context)).by_id
        return [comment_message(comment, authors[comment.author_id]) for comment in comments]

    async def comment(self, comment: Comment, context: Context) -> CommentMessage:
        """Return the message of a comment."""
        [message] = await self.comments([comment], context)
        return message

    async def notifications(
        self, notifications: Sequence[Notification], context: Context
    ) -> list[NotificationMessage]:
        """Return the messages of the caller's notifications."""
        ids = [each.actor_id for each in notifications]
        actors = (await self.authors.messages_for(ids, context)).by_id
        return [notification_message(each, actors[each.actor_id]) for each in notifications]


def post_message(post: Post, author: AuthorMessage) -> PostMessage:
    """Return the message of a post, without `liked`."""
    published_at = post.published_at
    return PostMessage(
        id=post.id,
        author=author,
        title=post.title,
        body=post.body,
        created_at=from_micros(post.created_at),
        updated_at=from_micros(post.updated_at),
        version=post.version,
        slug=post.slug,
        summary=post.summary,
        tags=post.tags,
        status=PostStatus.PUBLISHED if post.published else PostStatus.DRAFT,  # type: ignore[arg-type]
        like_count=post.like_count,
        comment_count=post.comment_count,
        published_at=None if published_at is None else from_micros(published_at),
    )


def comment_message(comment: Comment, author: AuthorMessage) -> CommentMessage:
    """Return the message of a comment."""
    return CommentMessage(
        id=comment.id,
        post_id=comment.post_id,
        author=author,
        body=comment.body,
        created_at=from_micros(comment.created_at),
        updated_at=from_micros(comment.updated_at),
        version=comment.version,
    )


def notification_message(notification: Notification, actor: AuthorMessage) -> NotificationMessage:
    """Return the message of a notification."""
    return NotificationMessage(
        id=notification.id,
        kind=NotificationKind.try_value(notification.kind),
        actor=actor,
        post_id=notification.post_id,
        comment_id=notification.comment_id,
        created_at=from_micros(notification.created_at),
        read=notification.read,
    )
