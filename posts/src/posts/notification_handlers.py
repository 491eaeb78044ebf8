"""What others did that concerns a user: learned from events, and one method per rpc of
NotificationsService in proto/postbus/posts/v1/notifications.proto.
"""

from dataclasses import dataclass

from postbus.posts.v1 import (
    CommentCreated,
    CommentDeleted,
    ListNotificationsRequest,
    ListNotificationsResponse,
    MarkReadRequest,
    MarkReadResponse,
    NotificationCreated,
    NotificationKind,
    NotificationsServiceBase,
    PostCreated,
    PostLiked,
    PostPublished,
    PostUnliked,
)
from postbus.posts.v1 import Post as PostMessage
from postbus.users.v1 import FollowChanged
from posts.authors import AuthorRepository, author_message
from posts.comments import CommentRepository
from posts.follows import FollowRepository
from posts.likes import LikeRepository
from posts.notifications import NotificationRepository, position
from posts.repository import PostRepository
from posts.texts import mentions
from posts.views import Views, notification_message
from shared.bus import EventPattern, MessagePattern, publish
from shared.context import Context
from shared.data.pages import Pages

__all__ = ["NotificationHandlers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationHandlers:
    """Notifications. Events come in any order: what has ended meanwhile is told nobody."""

    notifications: NotificationRepository
    posts: PostRepository
    comments: CommentRepository
    authors: AuthorRepository
    follows: FollowRepository
    likes: LikeRepository
    views: Views
    pages: Pages

    @MessagePattern(NotificationsServiceBase.list_notifications)
    async def list_notifications(
        self, request: ListNotificationsRequest, context: Context
    ) -> ListNotificationsResponse:
        """Return a page of the caller's notifications."""
        user_id, page, unread = context.user_id, self.pages.of(request), request.unread_only
        found = await self.notifications.of_user(user_id, page, unread_only=unread)
        notifications, token = page.cut(found, position)
        count = self.notifications.count
        return ListNotificationsResponse(
            notifications=await self.views.notifications(notifications, context),
            next_page_token=token,
            total=await count(user_id, unread_only=unread) if request.include_total else None,
            unread_count=await self.notifications.unread(user_id),
        )

    @MessagePattern(NotificationsServiceBase.mark_read)
    async def mark_read(self, request: MarkReadRequest, context: Context) -> MarkReadResponse:
        """Mark some of the caller's notifications, or all."""
        await self.notifications.mark_read(context.user_id, request.ids)
        left = await self.notifications.unread(context.user_id)
        return MarkReadResponse(unread_count=left)

    @EventPattern(FollowChanged, late=True)
    async def follow_changed(self, event: FollowChanged, context: Context) -> None:
        """Keep who follows whom, and tell the one who is followed."""
        new = await self.authors.revise(event.follower_id, event.follower_revision)
        if context.late or not new:
            return
        cards = await self.authors.by_ids([event.follower_id, event.followed_id])
        if any(card.deleted for card in cards.values()):
            return
        await self.follows.learn(event)
        if event.following:
            await self._notify(NotificationKind.FOLLOW, event.followed_id, event.follower_id)

    @EventPattern(PostLiked)
    async def post_liked(self, event: PostLiked, _context: Context) -> None:
        """Tell the author, if it is so still."""
        if await self.likes.liked_by(event.user_id, [event.post_id]):
            await self._notify(
                NotificationKind.LIKE, event.author_id, event.user_id, post_id=event.post_id
            )

    @EventPattern(PostUnliked)
    async def post_unliked(self, event: PostUnliked, _context: Context) -> None:
        """Take the notification back, if it is so still."""
        if not await self.likes.liked_by(event.user_id, [event.post_id]):
            await self.notifications.take_back_like(event.author_id, event.user_id, event.post_id)

    @EventPattern(CommentCreated)
    async def comment_created(self, event: CommentCreated, _context: Context) -> None:
        """Tell the author of the post, and whom the comment names, if it is there still."""
        if await self.comments.get(event.comment_id) is None:
            return
        actor, comment = event.comment.author.id, event.comment
        about = {"post_id": comment.post_id, "comment_id": comment.id}
        await self._notify(NotificationKind.COMMENT, event.post_author_id, actor, **about)
        for user_id in await self._mentioned(comment.body):
            await self._notify(NotificationKind.MENTION, user_id, actor, **about)

    @EventPattern(CommentDeleted)
    async def comment_deleted(self, event: CommentDeleted, _context: Context) -> None:
        """Take back what was told of it."""
        await self.notifications.erase("comment_id", event.comment_id)

    @EventPattern(PostCreated)
    async def post_created(self, event: PostCreated, _context: Context) -> None:
        """Tell whom the post names."""
        await self._notify_mentioned(event.post)

    @EventPattern(PostPublished)
    async def post_published(self, event: PostPublished, _context: Context) -> None:
        """Tell whom the post names."""
        await self._notify_mentioned(event.post)

    async def _notify_mentioned(self, post: PostMessage) -> None:
        stored = await self.posts.get(post.id)
        if stored is None or not stored.published:
            return
        for user_id in await self._mentioned(post.title, post.summary, post.body):
            await self._notify(NotificationKind.MENTION, user_id, post.author.id, post_id=post.id)

    async def _mentioned(self, *texts: str) -> list[str]:
        names = mentions(*texts)
        return [author.id for author in await self.authors.by_names(names)] if names else []

    async def _notify(
        self, kind: int, user_id: str, actor_id: str, *, post_id: str = "", comment_id: str = ""
    ) -> None:
        """Store a notification and tell the user, but nobody of what they did themselves."""
        cards = await self.authors.by_ids([user_id, actor_id])
        if user_id == actor_id or any(card.deleted for card in cards.values()):
            return
        notification = await self.notifications.add(
            kind, user_id, actor_id, post_id=post_id, comment_id=comment_id
        )
        if notification is not None:
            actor = author_message(actor_id, cards.get(actor_id))
            message = notification_message(notification, actor)
            await publish(NotificationCreated(user_id=user_id, notification=message))
