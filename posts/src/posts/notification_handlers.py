"""Notifications: the rpcs of NotificationsService, and the events that cause notifications."""

from dataclasses import dataclass

from odmantic.query import eq

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
    UserContentErasureContinued,
)
from postbus.posts.v1 import Post as PostMessage
from posts.authors import AuthorRepository, author_message
from posts.comments import CommentRepository
from posts.likes import LikeRepository, like_id
from posts.models import Comment, Notification
from posts.notification_repository import NotificationRepository
from posts.post_repository import PostRepository
from posts.post_texts import mentions
from posts.presenter import Presenter, notification_message
from shared.bus import EventPattern, MessagePattern, publish
from shared.context import Context
from shared.data.pages import Pages

__all__ = ["NotificationHandlers", "NotificationTriggers", "Notifier"]


@dataclass(frozen=True, slots=True)
class NotificationHandlers:
    """Handlers of the caller's notifications."""

    notifications: NotificationRepository
    presenter: Presenter
    pages: Pages

    @MessagePattern(NotificationsServiceBase.list_notifications)
    async def list_notifications(
        self, request: ListNotificationsRequest, context: Context
    ) -> ListNotificationsResponse:
        """Return a page of the caller's notifications."""
        user_id, page, unread = context.user_id, self.pages.of(request), request.unread_only
        found = await self.notifications.of_user(user_id, page, unread_only=unread)
        notifications, token = page.cut(found, lambda each: (each.id,))
        return ListNotificationsResponse(
            notifications=await self.presenter.notifications(notifications, context),
            next_page_token=token,
            total=await page.total(self.notifications.total, user_id, unread_only=unread),
            unread_count=await self.notifications.unread(user_id),
        )

    @MessagePattern(NotificationsServiceBase.mark_read)
    async def mark_read(self, request: MarkReadRequest, context: Context) -> MarkReadResponse:
        """Mark the caller's notifications with these ids as read, or all without ids."""
        await self.notifications.mark_read(context.user_id, request.ids)
        unread = await self.notifications.unread(context.user_id)
        return MarkReadResponse(unread_count=unread)


@dataclass(frozen=True, slots=True)
class Notifier:
    """Creates notifications."""

    notifications: NotificationRepository
    authors: AuthorRepository

    async def notify(
        self, kind: int, user_id: str, actor_id: str, *, post_id: str = "", comment_id: str = ""
    ) -> None:
        """Store a notification and publish it, unless it exists or a user is deleted.

        Users are not notified of their own actions.
        """
        authors = await self.authors.by_ids([user_id, actor_id])
        if user_id == actor_id or any(author.deleted for author in authors.values()):
            return
        notification = await self.notifications.add(
            kind, user_id, actor_id, post_id=post_id, comment_id=comment_id
        )
        if notification is not None:
            actor = author_message(actor_id, authors.get(actor_id))
            message = notification_message(notification, actor)
            await publish(NotificationCreated(user_id=user_id, notification=message))

    async def notify_mentioned(
        self, texts: list[str], actor_id: str, *, post_id: str, comment_id: str = ""
    ) -> None:
        """Notify the users that texts mention."""
        if not (names := mentions(*texts)):
            return
        users = [user.id for user in await self.authors.by_names(names)]
        for user_id in await self.authors.lock(users):
            await self.notify(
                NotificationKind.MENTION, user_id, actor_id, post_id=post_id, comment_id=comment_id
            )


@dataclass(frozen=True, slots=True)
class NotificationTriggers:
    """Consumers of the events that create or delete notifications.

    Events can arrive in any order. No notification is created if its cause no longer exists.
    Content of a deleted post or user is deleted: it can be stored after the erasure has ended, by
    a call that has read the post or user before its deletion.
    """

    notifier: Notifier
    notifications: NotificationRepository
    posts: PostRepository
    comments: CommentRepository
    likes: LikeRepository

    @EventPattern(PostLiked)
    async def post_liked(self, event: PostLiked, _context: Context) -> None:
        """Notify the author, if the like still exists."""
        post_id, user_id = event.post_id, event.user_id
        if await self.likes.lock(like_id(post_id, user_id)) is None:
            return
        if not await self.posts.exists(post_id):
            await self.likes.remove(post_id, user_id)
        elif not await self._is_deleted(user_id):
            kind = NotificationKind.LIKE
            await self.notifier.notify(kind, event.author_id, user_id, post_id=post_id)

    @EventPattern(PostUnliked)
    async def post_unliked(self, event: PostUnliked, _context: Context) -> None:
        """Withdraw the notification, unless the like exists again."""
        if await self.likes.get(like_id(event.post_id, event.user_id)) is None:
            await self.notifications.withdraw_like(event.author_id, event.user_id, event.post_id)

    @EventPattern(CommentCreated)
    async def comment_created(self, event: CommentCreated, _context: Context) -> None:
        """Notify the author of the post and the mentioned users, if the comment still exists."""
        actor_id, comment = event.comment.author.id, event.comment
        if await self.comments.lock(comment.id) is None:
            return
        if not await self.posts.exists(comment.post_id):
            await self.comments.delete_one(eq(Comment.id, comment.id))
        elif not await self._is_deleted(actor_id):
            about = {"post_id": comment.post_id, "comment_id": comment.id}
            kind = NotificationKind.COMMENT
            await self.notifier.notify(kind, event.post_author_id, actor_id, **about)
            await self.notifier.notify_mentioned([comment.body], actor_id, **about)

    @EventPattern(CommentDeleted)
    async def comment_deleted(self, event: CommentDeleted, _context: Context) -> None:
        """Delete the notifications about the comment."""
        await self.notifications.delete_many(eq(Notification.comment_id, event.comment_id))

    @EventPattern(PostCreated)
    async def post_created(self, event: PostCreated, _context: Context) -> None:
        """Notify the users that the post mentions."""
        await self._notify_mentioned(event.post)

    @EventPattern(PostPublished)
    async def post_published(self, event: PostPublished, _context: Context) -> None:
        """Notify the users that the post mentions."""
        await self._notify_mentioned(event.post)

    async def _notify_mentioned(self, post: PostMessage) -> None:
        texts = [post.title, post.summary, post.body]
        if await self._is_deleted(post.author.id) or not mentions(*texts):
            return
        stored = await self.posts.lock(post.id)
        if stored is not None and stored.published:
            await self.notifier.notify_mentioned(texts, post.author.id, post_id=post.id)

    async def _is_deleted(self, user_id: str) -> bool:
        """Return whether a user is deleted; if so, continue the erasure of the user's content."""
        author = (await self.notifier.authors.by_ids([user_id])).get(user_id)
        if author is None or not author.deleted:
            return False
        await publish(UserContentErasureContinued(user_id=user_id))
        return True
