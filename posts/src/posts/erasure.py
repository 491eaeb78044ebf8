"""What goes with a post or a user who is gone: in steps, each a transaction of its own.

A step that finds something publishes that there may be more, so that the next one follows whatever
happens in between. `posts.repair` tells whether anything is left.
"""

from dataclasses import dataclass
from typing import Final

from postbus.posts.v1 import (
    CommentDeleted,
    PostDeleted,
    PostErasureContinued,
    UserContentErasureContinued,
)
from postbus.users.v1 import UserDeleted
from posts.authors import AuthorRepository, gone
from posts.card_cache import CardCache
from posts.comments import CommentRepository
from posts.follows import FollowRepository
from posts.likes import LikeRepository
from posts.notifications import NotificationRepository
from posts.repository import PostRepository
from shared.bus import EventPattern, publish
from shared.context import Context

__all__ = ["Erasure"]

_STEP: Final = 100
_POSTS: Final = 10
"""Each may have twenty tags, for which others wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """Removes what has lost its post or its user."""

    posts: PostRepository
    comments: CommentRepository
    likes: LikeRepository
    follows: FollowRepository
    notifications: NotificationRepository
    authors: AuthorRepository
    cache: CardCache

    @EventPattern(UserDeleted)
    async def user_deleted(self, event: UserDeleted, _context: Context) -> None:
        """Let nothing new of the user in, then remove what there is."""
        await self.authors.bury(event.user_id)
        self.cache.keep([gone(event.user_id)])
        await publish(UserContentErasureContinued(user_id=event.user_id))

    @EventPattern(UserContentErasureContinued)
    async def user_content_erasure_continued(
        self, event: UserContentErasureContinued, _context: Context
    ) -> None:
        """Remove some of what a user has left."""
        user_id = event.user_id
        found = await self._posts_of(user_id)
        found = await self._comments_of(user_id) or found
        found = await self._likes_of(user_id) or found
        found = await self.follows.erase(user_id, _STEP) > 0 or found
        for key in ("user_id", "actor_id"):
            found = await self.notifications.erase(key, user_id, _STEP) > 0 or found
        if found:
            await publish(UserContentErasureContinued(user_id=user_id))

    @EventPattern(PostDeleted)
    async def post_deleted(self, event: PostDeleted, _context: Context) -> None:
        """Begin to remove what hung on the post."""
        await self._erase_post(event.post_id)

    @EventPattern(PostErasureContinued)
    async def post_erasure_continued(self, event: PostErasureContinued, _context: Context) -> None:
        """Remove some more of it."""
        await self._erase_post(event.post_id)

    async def _erase_post(self, post_id: str) -> None:
        found = [
            len(await self.comments.erase("post_id", post_id, _STEP)),
            len(await self.likes.erase("post_id", post_id, _STEP)),
            await self.notifications.erase("post_id", post_id, _STEP),
        ]
        if any(found):
            await publish(PostErasureContinued(post_id=post_id))

    async def _posts_of(self, user_id: str) -> bool:
        posts = await self.posts.some_of(user_id, _POSTS)
        for post in posts:
            await self.posts.delete(post)
            if post.published_at is not None:
                gone = PostDeleted(post_id=post.id, author_id=user_id, version=post.version + 1)
                await publish(gone)
        return bool(posts)

    async def _comments_of(self, user_id: str) -> bool:
        comments = await self.comments.erase("author_id", user_id, _STEP)
        for comment in comments:
            await publish(CommentDeleted(comment_id=comment.id, post_id=comment.post_id))
        post_ids = [comment.post_id for comment in comments]
        await self.posts.take_from_counts(post_ids, "comment_count")
        return bool(comments)

    async def _likes_of(self, user_id: str) -> bool:
        post_ids = await self.likes.erase("user_id", user_id, _STEP)
        await self.posts.take_from_counts(post_ids, "like_count")
        return bool(post_ids)
