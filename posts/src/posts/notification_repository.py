"""Notifications in MongoDB."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from odmantic.query import QueryExpression, and_, eq, in_, lt
from uuid_utils.compat import uuid7

from postbus.posts.v1 import NotificationKind
from posts.locks import lock
from posts.models import Notification
from posts.post_search import COUNTED
from posts.stored_times import now
from shared.data.mongo_database import Mongo
from shared.data.pages import Page, Position

__all__ = ["UNREAD_COUNTED", "NotificationRepository", "notification_position"]

UNREAD_COUNTED: Final = 10_000
"""The highest number of unread notifications that is counted, with each list."""

_RETENTION: Final = timedelta(days=90)


def notification_position(notification: Notification) -> Position:
    """Return the sort key of a notification: ids increase with time."""
    return (notification.id,)


class NotificationRepository:
    """Stores and finds notifications."""

    def __init__(self, mongo: Mongo) -> None:
        self._notifications = mongo.collection(Notification)

    async def add(
        self,
        kind: int,
        user_id: str,
        actor_id: str,
        *,
        post_id: str = "",
        comment_id: str = "",
    ) -> Notification | None:
        """Store and return a notification; None if it exists.

        A hidden notification is shown again.
        """
        key = _key(kind, user_id, actor_id, post_id, comment_id)
        shown = {"$set": {"hidden": False, **lock()["$set"]}}
        existing = await self._notifications.update_one(eq(Notification.key, key), shown)
        if existing is not None:
            return None
        notification = Notification(
            id=str(uuid7()),
            key=key,
            user_id=user_id,
            kind=int(kind),
            actor_id=actor_id,
            post_id=post_id,
            comment_id=comment_id,
            created_at=now(),
            expires_at=await self._notifications.database_time() + _RETENTION,
        )
        await self._notifications.insert(notification)
        return notification

    async def withdraw_like(self, user_id: str, actor_id: str, post_id: str) -> None:
        """Hide the notification of a like that was removed."""
        key = _key(NotificationKind.LIKE, user_id, actor_id, post_id)
        await self._notifications.update_one(eq(Notification.key, key), {"$set": {"hidden": True}})

    async def of_user(
        self, user_id: str, page: Page, *, unread_only: bool = False
    ) -> list[Notification]:
        """Return notifications of a user, the latest first."""
        query = _query(user_id, unread_only=unread_only)
        if page.after:
            query = and_(query, lt(Notification.id, page.after[0]))
        return await self._notifications.find(query, sort=[("_id", -1)], limit=page.limit)

    async def count(self, user_id: str, *, unread_only: bool) -> int | None:
        """Count the notifications of a user; None if there are more than COUNTED."""
        query = _query(user_id, unread_only=unread_only)
        return await self._notifications.count_at_most(COUNTED, query)

    async def unread(self, user_id: str) -> int:
        """Count the unread notifications of a user, up to UNREAD_COUNTED."""
        query = _query(user_id, unread_only=True)
        return await self._notifications.count(query, limit=UNREAD_COUNTED)

    async def mark_read(self, user_id: str, ids: Sequence[str]) -> None:
        """Mark notifications of a user as read; without `ids`, all of them."""
        query = _query(user_id, unread_only=True)
        if ids:
            query = and_(query, in_(Notification.id, [each.lower() for each in ids]))
        await self._notifications.update_many(query, {"$set": {"read": True}})

    async def delete_batch(self, field: str, id_: str, limit: int = 1000) -> int:
        """Delete up to `limit` notifications by the id in one field; return their number.

        The field is `user_id`, `actor_id`, `post_id` or `comment_id`.
        """
        query = eq(getattr(Notification, field), id_)
        return len(await self._notifications.delete_batch(query, limit))


def _query(user_id: str, *, unread_only: bool) -> QueryExpression:
    visible = and_(eq(Notification.user_id, user_id), eq(Notification.hidden, False))
    return and_(visible, eq(Notification.read, False)) if unread_only else visible


def _key(kind: int, user_id: str, actor_id: str, post_id: str = "", comment_id: str = "") -> str:
    """Return a key that is equal for repeated notifications of the same fact."""
    return f"{int(kind)} {user_id} {actor_id} {post_id} {comment_id}"
