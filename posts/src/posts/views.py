"""Posts and comments as the contract shows them: with authors, and as the caller sees them."""

from collections.abc import Sequence

from postbus.posts.v1 import Author as AuthorMessage
from postbus.posts.v1 import Comment as CommentMessage
from postbus.posts.v1 import Notification as NotificationMessage
from postbus.posts.v1 import NotificationKind, PostStatus
from postbus.posts.v1 import Post as PostMessage
from posts.author_cards import AuthorCards
from posts.caller_state import PostState
from posts.models import Comment, Notification, Post
from posts.repository import PostRepository
from posts.texts import is_id
from posts.times import from_micros
from shared.context import Context

__all__ = ["Views", "comment_message", "notification_message", "post_message"]


class Views:
    """Puts together what an answer shows."""

    def __init__(self, authors: AuthorCards, stored: PostRepository) -> None:
        self._authors = authors
        self._stored = stored

    async def read(self, name: str, context: Context) -> PostState:
        """Return the post with this id, or that has or had this slug, and what `post` shows of it.

        By id all of it is one query.
        """
        folded = name.casefold()
        if context.caller is not None and is_id(folded):
            return await self._authors.states.read_post(folded, context.caller.user_id)
        post, author = await self._stored.with_author(name)
        return PostState(post=post, author=author)

    async def posts(self, posts: Sequence[Post], context: Context) -> list[PostMessage]:
        """Return posts as the caller sees them."""
        return await self._posts(posts, context)

    async def post(
        self, post: Post, context: Context, state: PostState | None = None
    ) -> PostMessage:
        """Return a post as the caller sees it; `state` is what `read` has returned with it."""
        [message] = await self._posts([post], context, state)
        return message

    async def _posts(
        self, posts: Sequence[Post], context: Context, state: PostState | None = None
    ) -> list[PostMessage]:
        if not posts:
            return []
        ids, author_ids = [post.id for post in posts], [post.author_id for post in posts]
        seen = await self._authors.seen(author_ids, context, posts=ids, state=state)
        messages = [post_message(post, seen.authors[post.author_id]) for post in posts]
        for message in messages if seen.liked else ():
            message.liked = message.id in seen.liked
        return messages

    async def comments(self, comments: Sequence[Comment], context: Context) -> list[CommentMessage]:
        """Return comments as the caller sees them."""
        if not comments:
            return []
        seen = await self._authors.seen((comment.author_id for comment in comments), context)
        return [comment_message(comment, seen.authors[comment.author_id]) for comment in comments]

    async def comment(self, comment: Comment, context: Context) -> CommentMessage:
        """Return a comment as the caller sees it."""
        [message] = await self.comments([comment], context)
        return message

    async def notifications(
        self, notifications: Sequence[Notification], context: Context
    ) -> list[NotificationMessage]:
        """Return notifications of the caller."""
        if not notifications:
            return []
        seen = await self._authors.seen((each.actor_id for each in notifications), context)
        return [notification_message(each, seen.authors[each.actor_id]) for each in notifications]


def post_message(post: Post, author: AuthorMessage) -> PostMessage:
    """Return a post."""
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
        published_at=None if published_at is None else from_micros(published_at),  # type: ignore[arg-type]
    )


def comment_message(comment: Comment, author: AuthorMessage) -> CommentMessage:
    """Return a comment."""
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
    """Return a notification."""
    return NotificationMessage(
        id=notification.id,
        kind=NotificationKind.try_value(notification.kind),
        actor=actor,
        post_id=notification.post_id,
        comment_id=notification.comment_id,
        created_at=from_micros(notification.created_at),
        read=notification.read,
    )
