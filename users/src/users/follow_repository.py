"""Follows in PostgreSQL.

Follows and the counters of the accounts change in one transaction. The accounts are locked in the
order of their ids, which prevents deadlocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, delete, func, or_, select, tuple_, update
from sqlmodel.ext.asyncio.session import AsyncSession

from postbus import reasons
from shared.data.pages import Page
from shared.data.postgres_sessions import Postgres
from shared.errors import ServiceError
from users.models import Follow, User

__all__ = ["FollowChange", "FollowRepository", "ListedUser", "sort_key"]

_MAX_FOLLOWED: Final = 5000
"""Maximum number of users that one user follows."""
_BATCH: Final = 500
"""Follows that one transaction erases."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ListedUser:
    """A user in a list of followers or followed users, with the time of the follow."""

    user: User
    followed_at: datetime


@dataclass(frozen=True, slots=True)
class FollowChange:
    """The result of `add` or `remove`."""

    version: int
    """Version of the pair after the change; 0 if nothing was changed."""
    revision: int
    """Revision of the follower's account after the call; see User.revision."""


def sort_key(listed: ListedUser) -> tuple[str, str]:
    """Return the sort key of a user in a list of followers or followed users."""
    return listed.followed_at.isoformat(), listed.user.id


class FollowRepository:
    """Stores and finds follows."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def add(self, follower_id: str, followed_id: str) -> FollowChange:
        """Add a follow and increase the follower's revision, unless the follow exists.

        NOT_FOUND if an account does not exist, RESOURCE_EXHAUSTED with FOLLOWS_TOO_MANY if the
        follower follows 5000 users.
        """
        async with self._postgres.transaction() as session:
            following, revision = await _lock_pair(session, follower_id, followed_id)
            added = insert(Follow).on_conflict_do_nothing()
            added = added.values(
                follower_id=follower_id, followed_id=followed_id, followed_at=func.clock_timestamp()
            )
            since = (await session.exec(added.returning(col(Follow.followed_at)))).scalar()
            if since is None:
                return FollowChange(0, revision)
            if following >= _MAX_FOLLOWED:
                raise _too_many()
            await _count(session, [follower_id], [followed_id], 1, revise=1)
        return FollowChange(_version(since), revision + 1)

    async def remove(self, follower_id: str, followed_id: str) -> FollowChange:
        """Remove a follow and increase the follower's revision, if the follow exists.

        NOT_FOUND if an account does not exist.
        """
        async with self._postgres.transaction() as session:
            _, revision = await _lock_pair(session, follower_id, followed_id)
            removed = delete(Follow).where(
                col(Follow.follower_id) == follower_id, col(Follow.followed_id) == followed_id
            )
            now = (await session.exec(removed.returning(func.clock_timestamp()))).scalar()
            if now is None:
                return FollowChange(0, revision)
            await _count(session, [follower_id], [followed_id], -1, revise=1)
        return FollowChange(_version(now), revision + 1)

    async def followed_among(self, follower_id: str, ids: Sequence[str]) -> set[str]:
        """Return the subset of `ids` that the user follows."""
        query = select(Follow.followed_id).where(Follow.follower_id == follower_id)
        query = query.where(col(Follow.followed_id).in_(ids))
        async with self._postgres.reading() as session:
            return set((await session.exec(query)).all())

    async def followed_ids(self, follower_id: str) -> Sequence[str]:
        """Return the ids of all users that the user follows, the latest first."""
        query = select(Follow.followed_id).where(Follow.follower_id == follower_id)
        query = query.order_by(col(Follow.followed_at).desc(), col(Follow.followed_id).desc())
        async with self._postgres.reading() as session:
            return (await session.exec(query.limit(_MAX_FOLLOWED))).all()

    async def list_followers(self, user_id: str, page: Page) -> list[ListedUser]:
        """Return followers of the user, the latest first."""
        return await self._list(col(Follow.followed_id), col(Follow.follower_id), user_id, page)

    async def list_following(self, user_id: str, page: Page) -> list[ListedUser]:
        """Return users that the user follows, the latest first."""
        return await self._list(col(Follow.follower_id), col(Follow.followed_id), user_id, page)

    async def _list(self, own: Any, other: Any, user_id: str, page: Page) -> list[ListedUser]:
        """Return users in column `other` of the follows with the user in column `own`."""
        query = select(User, Follow.followed_at).join(Follow, other == User.id)
        query = query.where(own == user_id)
        if page.after:
            since, last = page.after
            after = tuple_(datetime.fromisoformat(str(since)), last)
            query = query.where(tuple_(col(Follow.followed_at), other) < after)
        query = query.order_by(col(Follow.followed_at).desc(), other.desc()).limit(page.limit)
        async with self._postgres.reading() as session:
            return [ListedUser(user, at) for user, at in (await session.exec(query)).all()]

    async def erase_batch(self, user_id: str) -> bool:
        """Delete a batch of follows of and by a deleted user. Return whether more may remain."""
        involved = or_(col(Follow.follower_id) == user_id, col(Follow.followed_id) == user_id)
        batch = select(Follow.follower_id, Follow.followed_id).where(involved).limit(_BATCH)
        async with self._postgres.transaction() as session:
            pairs = (await session.exec(batch)).all()
            await _lock(session, [each for pair in pairs for each in pair])
            pair = tuple_(col(Follow.follower_id), col(Follow.followed_id))
            removed = delete(Follow).where(pair.in_(pairs))
            removed = removed.returning(col(Follow.follower_id), col(Follow.followed_id))  # type: ignore[assignment]
            deleted = (await session.exec(removed)).all()
            await _count(session, [each[0] for each in deleted], [each[1] for each in deleted], -1)
        return len(pairs) == _BATCH


async def _lock_pair(session: AsyncSession, follower_id: str, followed_id: str) -> tuple[int, int]:
    """Lock both accounts. Return the following count and revision of the follower."""
    accounts = await _lock(session, [follower_id, followed_id])
    if len(accounts) < 2:
        raise _not_found()
    return accounts[follower_id]


async def _lock(session: AsyncSession, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Lock accounts in the order of their ids. Return the following count and revision by id."""
    query = select(User.id, User.following_count, User.revision).where(col(User.id).in_(set(ids)))
    query = query.order_by(col(User.id)).with_for_update(key_share=True)
    rows = (await session.exec(query)).all()
    return {id_: (following, revision) for id_, following, revision in rows}


async def _count(
    session: AsyncSession,
    followers: Sequence[str],
    followed: Sequence[str],
    step: int,
    *,
    revise: int = 0,
) -> None:
    """Add `step` to the counters of locked accounts, and `revise` to the followers' revisions."""
    following, follower = col(User.following_count), col(User.follower_count)
    revision = col(User.revision) + revise
    of_followers = update(User).where(col(User.id).in_(followers))
    await session.exec(of_followers.values(following_count=following + step, revision=revision))
    of_followed = update(User).where(col(User.id).in_(followed))
    await session.exec(of_followed.values(follower_count=follower + step))


def _version(at: datetime) -> int:
    """Return microseconds since 1970.

    They increase with each change of a pair: the time is that of the database's clock, taken while
    both accounts are locked.
    """
    since = at - _EPOCH
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


def _not_found() -> ServiceError:
    return ServiceError(reasons.USER_NOT_FOUND, "There is no such user.")


def _too_many() -> ServiceError:
    return ServiceError(
        reasons.FOLLOWS_TOO_MANY,
        f"A user can follow {_MAX_FOLLOWED} users at most. Unfollow another user first.",
    )
