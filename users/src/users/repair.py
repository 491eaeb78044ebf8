"""Repair of derived data: counters of follows, and follows of deleted users.

Each account is locked before it is counted, as in a follow, so the service may run during a repair.
"""

from collections.abc import AsyncIterator
from typing import Final

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.data.postgres_sessions import Postgres

__all__ = ["repair"]

_BATCH: Final = 500
"""Accounts per transaction."""
_LOCK: Final = text(
    "SELECT id FROM users WHERE id > :after ORDER BY id LIMIT :batch FOR NO KEY UPDATE"
)
_ORPHANS: Final = text(
    "DELETE FROM follows f WHERE NOT EXISTS (SELECT FROM users u WHERE u.id = f.follower_id)"
    " OR NOT EXISTS (SELECT FROM users u WHERE u.id = f.followed_id)"
)
_COUNT: Final = text(
    "WITH counted AS (SELECT u.id, u.follower_count, u.following_count,"
    " (SELECT count(*) FROM follows f WHERE f.followed_id = u.id) AS followers,"
    " (SELECT count(*) FROM follows f WHERE f.follower_id = u.id) AS following"
    " FROM users u WHERE u.id = ANY(:ids))"
    " UPDATE users SET follower_count = c.followers, following_count = c.following"
    " FROM counted c WHERE users.id = c.id"
    " AND (c.follower_count, c.following_count) IS DISTINCT FROM (c.followers, c.following)"
    " RETURNING users.id, c.follower_count, c.followers, c.following_count, c.following"
)


async def repair(postgres: Postgres) -> AsyncIterator[str]:
    """Correct all derived data. Yield one line per correction, then a summary."""
    accounts, corrected, after = 0, 0, ""
    async with postgres.transaction() as session:
        orphans = (await (await session.connection()).execute(_ORPHANS)).rowcount
    while batch := await _repair_batch(postgres, after):
        ids, corrections = batch
        accounts, corrected, after = accounts + len(ids), corrected + len(corrections), ids[-1]
        for correction in corrections:
            yield correction
    yield f"{accounts} accounts, {corrected} with wrong counters, {orphans} follows without a user"


async def _repair_batch(postgres: Postgres, after: str) -> tuple[list[str], list[str]] | None:
    """Correct the next accounts. Return their ids and the corrections; None if there are none."""
    async with postgres.transaction() as session:
        ids = await _lock(session, after)
        if not ids:
            return None
        rows = (await (await session.connection()).execute(_COUNT, {"ids": ids})).all()
    return ids, [
        f"{id_}: {followers} followers instead of {had}, {following} followed instead of {followed}"
        for id_, had, followers, followed, following in rows
    ]


async def _lock(session: AsyncSession, after: str) -> list[str]:
    connection = await session.connection()
    rows = await connection.execute(_LOCK, {"after": after, "batch": _BATCH})
    return list(rows.scalars())
