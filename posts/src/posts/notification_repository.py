"""Notifications in MongoDB."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from odmantic.query import QueryExpression, and_, eq, in_
from uuid_utils.compat import uuid7

from postbus.posts.v1 import NotificationKind
from posts.models import Notification
from posts.repository import COUNTED, Repository, lock
from posts.stored_times import now
from shared.data.mongo_database import Mongo
from shared.data.pages import Page

__all__ = ["UNREAD_COUNTED", "NotificationRepository"]

UNREAD_COUNTED: Final = 10_000
"""The highest number of unread notifications that is counted, with each list."""

_RETENTION: Final = timedelta(days=90)


class NotificationRepository(Repository[Notification]):
    """Stores and finds notifications. Their ids increase with time."""

    def __init__(self, mongo: Mongo) -> None:
        super().__init__(mongo, Notification)

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
        existing = await self.update_one(eq(Notification.key, key), shown)
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
            expires_at=await self.database_time() + _RETENTION,
        )
        await self.insert(notification)
        return notification

    async def withdraw_like(self, user_id: str, actor_id: str, post_id: str) -> None:
        """Hide the notification of a like that was removed."""
        key = _key(NotificationKind.LIKE, user_id, actor_id, post_id)
        await self.update_one(eq(Notification.key, key), {"$set": {"hidden": True}})

    async def of_user(
        self, user_id: str, page: Page, *, unread_only: bool = False
    ) -> list[Notification]:
        """Return notifications of a user, the latest first."""
        return await self.latest(page, Notification.id, _query(user_id, unread_only=unread_only))

    async def total(self, user_id: str, *, unread_only: bool) -> int | None:
        """Count the notifications of a user; None if there are more than COUNTED."""
        return await self.count_at_most(COUNTED, _query(user_id, unread_only=unread_only))

    async def unread(self, user_id: str) -> int:
        """Count the unread notifications of a user, up to UNREAD_COUNTED."""
        return await self.count(_query(user_id, unread_only=True), limit=UNREAD_COUNTED)

    async def mark_read(self, user_id: str, ids: Sequence[str]) -> None:
        """Mark notifications of a user as read; without `ids`, all of them."""
        query = _query(user_id, unread_only=True)
        if ids:
            query = and_(query, in_(Notification.id, [each.lower() for each in ids]))
        await self.update_many(query, {"$set": {"read": True}})


def _query(user_id: str, *, unread_only: bool) -> QueryExpression:
    visible = and_(eq(Notification.user_id, user_id), eq(Notification.hidden, False))
    return and_(visible, eq(Notification.read, False)) if unread_only else visible


def _key(kind: int, user_id: str, actor_id: str, post_id: str = "", comment_id: str = "") -> str:
    """Return a key that is equal for repeated notifications of the same fact."""
    return f"{int(kind)} {user_id} {actor_id} {post_id} {comment_id}"
