"""Baselines of `program.py`: writes and unit-of-work rows by the drivers alone, without a bus."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern
from uuid_utils import uuid7

from postbus.bus.v1 import Event
from shared.outbox.inbox import Operation
from shared.wire import encode

__all__ = ["EVENT_TYPE", "TEXT", "Write", "mongo_baseline", "new_event", "postgres_baseline"]

EVENT_TYPE: Final = "postbus.bench.v1.Noted"
TEXT: Final = "x" * 200
_UNCLAIMED: Final = datetime(1970, 1, 1, tzinfo=UTC)
_POOL: Final = 10
"""Connections to PostgreSQL; a worker has the same number."""

Write = Callable[[], Awaitable[None]]


def new_event(subject: str) -> Event:
    return Event(id=str(uuid7()), type=EVENT_TYPE, subject=subject, data=TEXT.encode())


@asynccontextmanager
async def postgres_baseline(url: str) -> AsyncIterator[tuple[Write, Write, Write]]:
    """Provide a bare write, a write with the rows of a unit of work, and a deletion of events."""
    async with asyncpg.create_pool(url, min_size=_POOL, max_size=_POOL) as pool:

        async def bare() -> None:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("INSERT INTO notes VALUES ($1)", TEXT)

        async def rows() -> None:
            event = new_event("rows")
            key = Operation.key_of(event.id)
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(
                    "INSERT INTO inbox (key, fingerprint) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                    key,
                    b"f",
                )
                await connection.execute("INSERT INTO notes VALUES ($1)", TEXT)
                await connection.execute(
                    "INSERT INTO outbox (id, event) VALUES ($1, $2)", event.id, encode(event)
                )
                await connection.execute(
                    "UPDATE inbox SET reply = $2 WHERE key = $1", key, TEXT.encode()
                )

        async def clear() -> None:
            async with pool.acquire() as connection, connection.transaction():
                found = await connection.fetch(
                    "SELECT id FROM outbox ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED"
                )
                ids = [each["id"] for each in found]
                await connection.execute("DELETE FROM outbox WHERE id = ANY($1)", ids)

        yield bare, rows, clear


@asynccontextmanager
async def mongo_baseline(url: str) -> AsyncIterator[tuple[Write, Write, Write]]:
    """See `postgres_baseline`."""
    concern = WriteConcern("majority", j=True)
    client: AsyncMongoClient[dict[str, Any]]
    async with AsyncMongoClient(url, tz_aware=True) as client:
        database: AsyncDatabase[dict[str, Any]] = client.get_default_database().with_options(
            write_concern=concern
        )

        async def bare() -> None:
            async with client.start_session() as session:
                await session.with_transaction(insert, ReadConcern("snapshot"), concern)

        async def insert(session: AsyncClientSession) -> None:
            note = {"_id": ObjectId(), "text": TEXT}
            await database["notes"].insert_one(note, session=session)

        async def rows() -> None:
            async with client.start_session() as session:
                await session.with_transaction(insert_all, ReadConcern("snapshot"), concern)

        async def insert_all(session: AsyncClientSession) -> None:
            event = new_event("rows")
            key = Operation.key_of(event.id)
            await database["inbox"].find_one({"_id": key}, session=session)
            await insert(session)
            entry = {
                "_id": key,
                "fingerprint": b"f",
                "reply": TEXT.encode(),
                "events": [encode(event)],
                "event_id": event.id,
                "until": _UNCLAIMED,
            }
            await database["inbox"].insert_one(entry, session=session)

        async def clear() -> None:
            waiting = {"until": {"$lt": datetime.now(UTC)}}
            found = await database["inbox"].find(waiting, {"_id": 1}).limit(100).to_list()
            sent = {"$unset": dict.fromkeys(("events", "event_id", "until"), "")}
            await database["inbox"].update_many({"_id": {"$in": [e["_id"] for e in found]}}, sent)

        yield bare, rows, clear
