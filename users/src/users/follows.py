"""Who follows whom, in PostgreSQL. The counters of accounts change with it, or not at all.

Every change locks the accounts first, by id: so none waits for another in a circle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, delete, func, or_, select, tuple_, update
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.data.pages import Page
from shared.data.postgres_sessions import Postgres
from shared.errors import Code, ServiceError
from users.models import Follow, User

__all__ = ["FollowChange", "FollowRepository", "Followed", "position"]

MOST_FOLLOWED: Final = 5000
_BATCH: Final = 500
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Followed:
    """A user in a list, and since when."""

    user: User
    at: datetime


@dataclass(frozen=True, slots=True)
class FollowChange:
    """The outcome of following or unfollowing."""

    version: int
    """Version of the pair; 0 if nothing was changed."""
    revision: int
    """The follower's revision afterwards, see User.revision."""


def position(followed: Followed) -> tuple[str, str]:
    """Return where a user stands in a list of followers, or of followed."""
    return followed.at.isoformat(), followed.user.id


class FollowRepository:
    """Stores and finds follows."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def add(self, follower_id: str, followed_id: str) -> FollowChange:
        """Follow, and count the change in the follower's revision.

        NOT_FOUND if one of them is gone, RESOURCE_EXHAUSTED if the follower follows too many.
        """
        async with self._postgres.transaction() as session:
            accounts = await _lock(session, [follower_id, followed_id])
            if len(accounts) < 2:
                raise _not_found()
            added = insert(Follow).on_conflict_do_nothing()
            added = added.values(
                follower_id=follower_id, followed_id=followed_id, followed_at=func.clock_timestamp()
            )
            since = (await session.exec(added.returning(col(Follow.followed_at)))).scalar()
            following, revision = accounts[follower_id]
            if since is None:
                return FollowChange(0, revision)
            if following >= MOST_FOLLOWED:
                raise _too_many()
            await _count(session, [follower_id], [followed_id], 1, revise=1)
        return FollowChange(_version(since), revision + 1)

    async def remove(self, follower_id: str, followed_id: str) -> FollowChange:
        """Follow no longer, and count the change in the follower's revision.

        NOT_FOUND if one of them is gone.
        """
        async with self._postgres.transaction() as session:
            accounts = await _lock(session, [follower_id, followed_id])
            if len(accounts) < 2:
                raise _not_found()
            _, revision = accounts[follower_id]
            removed = delete(Follow).where(
                col(Follow.follower_id) == follower_id, col(Follow.followed_id) == followed_id
            )
            now = (await session.exec(removed.returning(func.clock_timestamp()))).scalar()
            if now is None:
                return FollowChange(0, revision)
            await _count(session, [follower_id], [followed_id], -1, revise=1)
        return FollowChange(_version(now), revision + 1)

    async def followed_by(self, follower_id: str, ids: Sequence[str]) -> set[str]:
        """Return which of `ids` the user follows."""
        query = select(Follow.followed_id).where(Follow.follower_id == follower_id)
        query = query.where(col(Follow.followed_id).in_(ids))
        async with self._postgres.reading() as session:
            return set((await session.exec(query)).all())

    async def followed_ids(self, follower_id: str) -> Sequence[str]:
        """Return whom the user follows, the latest first."""
        query = select(Follow.followed_id).where(Follow.follower_id == follower_id)
        query = query.order_by(col(Follow.followed_at).desc(), col(Follow.followed_id).desc())
        async with self._postgres.reading() as session:
            return (await session.exec(query.limit(MOST_FOLLOWED))).all()

    async def followers(self, user_id: str, page: Page) -> list[Followed]:
        """Return those who follow the user, the latest first."""
        return await self._listed(col(Follow.followed_id), col(Follow.follower_id), user_id, page)

    async def following(self, user_id: str, page: Page) -> list[Followed]:
        """Return those whom the user follows, the latest first."""
        return await self._listed(col(Follow.follower_id), col(Follow.followed_id), user_id, page)

    async def _listed(self, mine: Any, other: Any, user_id: str, page: Page) -> list[Followed]:
        query = select(User, Follow.followed_at).join(Follow, other == User.id)
        query = query.where(mine == user_id)
        if page.after:
            since, last = page.after
            after = tuple_(datetime.fromisoformat(str(since)), last)
            query = query.where(tuple_(col(Follow.followed_at), other) < after)
        query = query.order_by(col(Follow.followed_at).desc(), other.desc()).limit(page.limit)
        async with self._postgres.reading() as session:
            return [Followed(user, at) for user, at in (await session.exec(query)).all()]

    async def erase(self, user_id: str) -> bool:
        """Remove some follows of and by a user who is gone; return whether there are more."""
        theirs = or_(col(Follow.follower_id) == user_id, col(Follow.followed_id) == user_id)
        some = select(Follow.follower_id, Follow.followed_id).where(theirs).limit(_BATCH)
        async with self._postgres.transaction() as session:
            pairs = (await session.exec(some)).all()
            await _lock(session, [each for pair in pairs for each in pair])
            pair = tuple_(col(Follow.follower_id), col(Follow.followed_id))
            removed = delete(Follow).where(pair.in_(pairs))
            removed = removed.returning(col(Follow.follower_id), col(Follow.followed_id))  # type: ignore[assignment]
            gone = (await session.exec(removed)).all()
            await _count(session, [each[0] for each in gone], [each[1] for each in gone], -1)
        return len(pairs) == _BATCH


async def _lock(session: AsyncSession, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Lock accounts, by id; return the following count and the revision of each that exists."""
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
    """Add `step` to the counters of accounts that are locked, and `revise` to the revisions of
    the followers.
    """
    following, follower = col(User.following_count), col(User.follower_count)
    theirs = update(User).where(col(User.id).in_(followers))
    revision = col(User.revision) + revise
    await session.exec(theirs.values(following_count=following + step, revision=revision))
    theirs = update(User).where(col(User.id).in_(followed))
    await session.exec(theirs.values(follower_count=follower + step))


def _version(at: datetime) -> int:
    """Microseconds since 1970: one clock, that of the database, under the lock of both accounts."""
    since = at - _EPOCH
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


def _not_found() -> ServiceError:
    return ServiceError(Code.NOT_FOUND, "USER_NOT_FOUND", "There is no such user.")


def _too_many() -> ServiceError:
    return ServiceError(
        Code.RESOURCE_EXHAUSTED,
        "FOLLOWS_TOO_MANY",
        f"Nobody follows more than {MOST_FOLLOWED} users: follow someone else no longer.",
    )
