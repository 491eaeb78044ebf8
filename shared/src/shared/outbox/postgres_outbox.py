"""The outbox in PostgreSQL: the table `outbox`."""

from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from shared.outbox.outbox import EncodedEvent, Publish, publish_all

__all__ = ["forward"]

_BATCH: Final = 100
_CLAIM: Final = "SELECT event FROM outbox ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED"
_DELETE: Final = "DELETE FROM outbox WHERE id = ANY($1)"


async def forward(engine: AsyncEngine, publish: Publish) -> int:
    """See Store.forward. Events that another process is publishing are locked, and skipped."""
    async with engine.begin() as connection:
        rows = (await connection.exec_driver_sql(_CLAIM, (_BATCH,))).all()
        events = [EncodedEvent.read(row.event) for row in rows]
        confirmed, failure = await publish_all(publish, events)
        if confirmed:
            await connection.exec_driver_sql(_DELETE, (list(confirmed),))
    if failure is not None:
        raise failure
    return len(confirmed)
