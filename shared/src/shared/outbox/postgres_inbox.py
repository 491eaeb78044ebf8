"""The inbox in PostgreSQL: the tables `inbox` and `versions`."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.outbox.inbox import KEEP_SECONDS, AlreadyDone, Operation, stored_reply

__all__ = ["erase_replies", "insert_operation", "purge"]

_INSERT_OPERATION: Final = (
    "INSERT INTO inbox (key, fingerprint, owner) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
)
_SELECT_OPERATION: Final = sa.text("SELECT fingerprint, reply FROM inbox WHERE key = :key")
_RAISE_VERSION: Final = sa.text(
    "INSERT INTO versions (subject, version) VALUES (:subject, :version) ON CONFLICT (subject)"
    " DO UPDATE SET version = excluded.version WHERE versions.version < excluded.version"
)
_PURGE: Final = sa.text(
    "DELETE FROM inbox WHERE key IN (SELECT key FROM inbox"
    " WHERE done_at < now() - make_interval(secs => :seconds) LIMIT :limit)"
)
_PURGE_BATCH: Final = 10_000
_ERASE_REPLIES: Final = sa.text(
    "UPDATE inbox SET reply = CASE WHEN reply = '' THEN reply END, owner = NULL"
    " WHERE key IN (SELECT key FROM inbox WHERE owner = :owner LIMIT :limit)"
)
_ERASE_BATCH: Final = 500
"""Replies that one transaction erases."""


async def insert_operation(connection: AsyncConnection, operation: Operation) -> bool:
    """Insert `operation` into the inbox; AlreadyDone if it must not run again.

    Waits for a concurrent transaction with the same key. Returns whether the operation is a late
    event: a newer event of the subject was handled before.
    """
    # driver SQL, because compiling a statement of SQLAlchemy would slow each operation down
    inserted = await connection.exec_driver_sql(
        _INSERT_OPERATION, (operation.key, operation.fingerprint, operation.owner or None)
    )
    if inserted.rowcount == 0:
        stored = await connection.execute(_SELECT_OPERATION, {"key": operation.key})
        fingerprint, reply = stored.one()
        raise AlreadyDone(stored_reply(operation, fingerprint, reply))
    if not operation.version:
        return False
    version = {"subject": operation.subject, "version": operation.version}
    late = (await connection.execute(_RAISE_VERSION, version)).rowcount == 0
    if late and not operation.handles_late:
        raise AlreadyDone
    return late


async def erase_replies(connection: AsyncConnection, owner: str) -> bool:
    """Erase a batch of stored replies; see Store.erase_replies."""
    batch = {"owner": owner, "limit": _ERASE_BATCH}
    return (await connection.execute(_ERASE_REPLIES, batch)).rowcount == _ERASE_BATCH


async def purge(engine: AsyncEngine) -> None:
    """Delete old operations in batches; see Store.purge."""
    purged = _PURGE_BATCH
    while purged == _PURGE_BATCH:
        async with engine.begin() as connection:
            old = {"seconds": KEEP_SECONDS, "limit": _PURGE_BATCH}
            purged = (await connection.execute(_PURGE, old)).rowcount
