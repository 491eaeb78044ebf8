"""The outbox in PostgreSQL: the table `outbox`."""

from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from shared.outbox.outbox import EncodedEvent, Publish, publish_all, retry_delay

__all__ = ["forward"]

_BATCH: Final = 100
_CLAIM: Final = (
    "SELECT event, attempts FROM outbox AS due WHERE retry_at <= now() AND NOT EXISTS ("
    "SELECT FROM outbox AS refused WHERE refused.subject = due.subject AND refused.subject <> ''"
    " AND refused.retry_at > '-infinity' AND refused.id < due.id)"
    " ORDER BY retry_at, id LIMIT $1 FOR UPDATE OF due SKIP LOCKED"
)
"""Events in order, without the events of a subject that follow a refused one."""
_DELETE: Final = "DELETE FROM outbox WHERE id = ANY($1)"
_POSTPONE: Final = (
    "UPDATE outbox SET attempts = outbox.attempts + 1, retry_at = now() + delay * interval '1 s'"
    " FROM unnest(CAST($1 AS varchar[]), CAST($2 AS float[])) AS refused (id, delay)"
    " WHERE outbox.id = refused.id"
)


async def forward(engine: AsyncEngine, publish: Publish) -> int:
    """See Store.forward. Events that another process is publishing are locked, and skipped."""
    async with engine.begin() as connection:
        rows = (await connection.exec_driver_sql(_CLAIM, (_BATCH,))).all()
        attempts = {EncodedEvent.read(row.event): row.attempts for row in rows}
        published = await publish_all(publish, attempts)
        if published.confirmed:
            await connection.exec_driver_sql(_DELETE, (list(published.confirmed),))
        if published.refused:
            delays = {
                event.id: retry_delay(count)
                for event, count in attempts.items()
                if event.id in published.refused
            }
            await connection.exec_driver_sql(_POSTPONE, (list(delays), list(delays.values())))
    if published.failure is not None:
        raise published.failure
    return len(published.confirmed) + len(published.refused)
