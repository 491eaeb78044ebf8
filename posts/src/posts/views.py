"""Posts and comments as the contract shows them: with authors, and as the caller sees them."""

from collections.abc import Iterable, Sequence

from postbus.posts.v1 import Author as AuthorMessage
from postbus.posts.v1 import Comment as CommentMessage
from postbus.posts.v1 import Notification as NotificationMessage
from postbus.posts.v1 import NotificationKind, PostStatus
from postbus.posts.v1 import Post as PostMessage
from posts.authors import AuthorCards
from posts.follows import FollowRepository
from posts.likes import LikeRepository
from posts.models import Author, Comment, Notification, Post
from posts.times import from_micros
from shared.context import Context

__all__ = ["Views", "author_message", "comment_message", "notification_message", "post_message"]


class Views:
    """Puts together what an answer shows."""

    def __init__(
        self, authors: AuthorCards, follows: FollowRepository, likes: LikeRepository
    ) -> None:
        self._authors = authors
        self._follows = follows
        self._likes = likes

    async def posts(self, posts: Sequence[Post], context: Context) -> list[PostMessage]:
        """Return posts as the caller sees them."""
        authors = await self._messages_of((post.author_id for post in posts), context)
        liked: set[str] = set()
        if context.caller is not None and posts:
            ids = [post.id for post in posts]
            liked = await self._likes.liked_by(context.caller.user_id, ids)
        messages = [post_message(post, authors[post.author_id]) for post in posts]
        for message in messages:
            message.liked = message.id in liked
        return messages

    async def post(self, post: Post, context: Context) -> PostMessage:
        """Return a post as the caller sees it."""
        [message] = await self.posts([post], context)
        return message

    async def comments(self, comments: Sequence[Comment], context: Context) -> list[CommentMessage]:
        """Return comments as the caller sees them."""
        authors = await self._messages_of((comment.author_id for comment in comments), context)
        return [comment_message(comment, authors[comment.author_id]) for comment in comments]

    async def comment(self, comment: Comment, context: Context) -> CommentMessage:
        """Return a comment as the caller sees it."""
        [message] = await self.comments([comment], context)
        return message

    async def notifications(
        self, notifications: Sequence[Notification], context: Context
    ) -> list[NotificationMessage]:
        """Return notifications of the caller."""
        actors = await self._messages_of((each.actor_id for each in notifications), context)
        return [notification_message(each, actors[each.actor_id]) for each in notifications]

    async def _messages_of(
        self, author_ids: Iterable[str], context: Context
    ) -> dict[str, AuthorMessage]:
        wanted = set(author_ids)
        cards = await self._authors.by_ids(wanted, context)
        followed: set[str] = set()
        if context.caller is not None and wanted:
            followed = await self._follows.followed_by(context.caller.user_id, wanted)
        return {
            id_: author_message(id_, cards.get(id_), followed=id_ in followed) for id_ in wanted
        }


def author_message(id_: str, card: Author | None, *, followed: bool = False) -> AuthorMessage:
    """Return an author; without a card all but the id is empty."""
    if card is None:
        return AuthorMessage(id=id_, followed=followed)
    return AuthorMessage(
        id=id_,
        username=card.username,
        display_name=card.display_name,
        image_url=card.image_url,
        followed=followed,
    )


def post_message(post: Post, author: AuthorMessage) -> PostMessage:
    """Return a post."""
    message = PostMessage(
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
    )
    if post.published_at is not None:
        message.published_at = from_micros(post.published_at)
    return message


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
