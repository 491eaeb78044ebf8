"""Erase the content of deleted posts and users in batches, one transaction each.

A batch that found data publishes an event for the next one, so that an erasure continues after a
crash. `posts.repair` deletes and reports the rest if events are lost.
"""

from dataclasses import dataclass
from typing import Final

from odmantic.query import eq, or_

from postbus.posts.v1 import (
    CommentDeleted,
    PostDeleted,
    PostErasureContinued,
    UserContentErasureContinued,
)
from posts.comments import CommentRepository
from posts.follow_repository import FollowRepository
from posts.likes import LikeRepository
from posts.models import Comment, Follow, Like, Notification, Post
from posts.notification_repository import NotificationRepository
from posts.post_repository import PostRepository
from shared.bus import EventPattern, publish
from shared.context import Context
from shared.outbox.unit_of_work import Store

__all__ = ["PostErasure", "UserErasure"]

_BATCH: Final = 100
"""Documents of each collection per transaction."""
_POSTS: Final = 10
"""Posts per transaction. Each post locks up to twenty tag counters."""


@dataclass(frozen=True, slots=True)
class PostErasure:
    """Erases the content of deleted posts."""

    comments: CommentRepository
    likes: LikeRepository
    notifications: NotificationRepository

    @EventPattern(PostDeleted)
    async def post_deleted(self, event: PostDeleted, _context: Context) -> None:
        """Erase the first batch of the post's content."""
        await self._erase(event.post_id)

    @EventPattern(PostErasureContinued)
    async def post_erasure_continued(self, event: PostErasureContinued, _context: Context) -> None:
        """Erase the next batch of the post's content."""
        await self._erase(event.post_id)

    async def _erase(self, post_id: str) -> None:
        found = [
            await self.comments.delete_batch(eq(Comment.post_id, post_id), _BATCH),
            await self.likes.delete_batch(eq(Like.post_id, post_id), _BATCH),
            await self.notifications.delete_batch(eq(Notification.post_id, post_id), _BATCH),
        ]
        if any(found):
            await publish(PostErasureContinued(post_id=post_id))


@dataclass(frozen=True, slots=True)
class UserErasure:
    """Erases the content of deleted users. `AuthorHandlers.user_deleted` starts it."""

    posts: PostRepository
    comments: CommentRepository
    likes: LikeRepository
    follows: FollowRepository
    notifications: NotificationRepository
    store: Store

    @EventPattern(UserContentErasureContinued)
    async def user_content_erasure_continued(
        self, event: UserContentErasureContinued, _context: Context
    ) -> None:
        """Erase the next batch of the user's content."""
        user_id = event.user_id
        follows = or_(eq(Follow.follower_id, user_id), eq(Follow.followed_id, user_id))
        found = [
            await self._erase_posts(user_id),
            await self._erase_comments(user_id),
            await self._erase_likes(user_id),
            await self.follows.delete_batch(follows, _BATCH),
            await self.notifications.delete_batch(eq(Notification.user_id, user_id), _BATCH),
            await self.notifications.delete_batch(eq(Notification.actor_id, user_id), _BATCH),
            await self.store.erase_replies(user_id),
        ]
        if any(found):
            await publish(UserContentErasureContinued(user_id=user_id))

    async def _erase_posts(self, user_id: str) -> bool:
        own = eq(Post.author_id, user_id)
        posts = await self.posts.find(own, sort=[("_id", 1)], limit=_POSTS, without=["body"])
        for post in posts:
            await self.posts.delete(post)
            if post.published_at is not None:
                version = post.version + 1
                await publish(PostDeleted(post_id=post.id, author_id=user_id, version=version))
        return bool(posts)

    async def _erase_comments(self, user_id: str) -> bool:
        comments = await self.comments.delete_batch(eq(Comment.author_id, user_id), _BATCH)
        for comment in comments:
            await publish(CommentDeleted(comment_id=comment.id, post_id=comment.post_id))
        post_ids = [comment.post_id for comment in comments]
        await self.posts.add_to_counts(post_ids, "comment_count", -1)
        return bool(comments)

    async def _erase_likes(self, user_id: str) -> bool:
        likes = await self.likes.delete_batch(eq(Like.user_id, user_id), _BATCH)
        await self.posts.add_to_counts([like.post_id for like in likes], "like_count", -1)
        return bool(likes)
