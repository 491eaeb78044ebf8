"""Faults of PostgreSQL and MongoDB."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import asyncpg
from pymongo import AsyncMongoClient
from pymongo.errors import AutoReconnect

from tests.faults.chaos.faults import end_and_start, stalled, unreachable
from tests.faults.chaos.matrix import Place, Row, row
from tests.people import eventually

__all__ = ["DATABASE_ROWS"]


@row("16", "SIGKILL of MongoDB", part="mongodb", allowed=5)
async def mongodb_killed(place: Place) -> None:
    await end_and_start(place, "mongodb", signal.SIGKILL)


@row("17", "MongoDB's primary steps down for 3 s", part="mongodb", allowed=5)
async def mongodb_stepped_down(place: Place) -> None:
    async with AsyncMongoClient[dict[str, Any]](place.mongo_url) as client:
        with suppress(AutoReconnect):  # the server may close the connections
            await client.admin.command("replSetStepDown", 3, force=True)

        async def is_primary() -> bool:
            return bool((await client.admin.command("hello"))["isWritablePrimary"])

        await eventually(is_primary, 30)


@row("17", "MongoDB is unreachable for 4 s", part="mongodb", allowed=3)
async def mongodb_unreachable(place: Place) -> None:
    await unreachable(place, "mongodb", 4)


@row("19", "MongoDB does not respond for 15 s", part="mongodb", allowed=5)
async def mongodb_stalled(place: Place) -> None:
    await stalled(place, "mongodb", 15)


@row("18", "SIGQUIT of PostgreSQL", part="postgresql", allowed=2)
async def postgresql_quit(place: Place) -> None:
    await end_and_start(place, "postgresql", signal.SIGQUIT)


@row("18", "SIGKILL of PostgreSQL", part="postgresql", allowed=2)
async def postgresql_killed(place: Place) -> None:
    await end_and_start(place, "postgresql", signal.SIGKILL)


@row("18", "PostgreSQL is unreachable for 4 s", part="postgresql", allowed=3)
async def postgresql_unreachable(place: Place) -> None:
    await unreachable(place, "postgresql", 4)


@row("19", "PostgreSQL does not respond for 15 s", part="postgresql", allowed=5)
async def postgresql_stalled(place: Place) -> None:
    await stalled(place, "postgresql", 15)


@row("20", "PostgreSQL is read-only for 6 s", part="postgresql", allowed=3)
async def postgresql_read_only(place: Place) -> None:
    setting = "default_transaction_read_only"
    async with _altered(place, f"SET {setting} = on", f"RESET {setting}"):
        await asyncio.sleep(6)


@row("20", "PostgreSQL accepts no further connection for 6 s", part="postgresql", allowed=2)
async def postgresql_full(place: Place) -> None:
    async with _altered(place, "CONNECTION LIMIT 0", "CONNECTION LIMIT -1"):
        await asyncio.sleep(6)


@row("20", "PostgreSQL ends all sessions 5 times", part="postgresql", allowed=2)
async def postgresql_sessions_ended(place: Place) -> None:
    async with _administrator(place) as connection:
        for _ in range(5):
            await _end_sessions(connection)
            await asyncio.sleep(0.5)


@asynccontextmanager
async def _administrator(place: Place) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(place.postgres_url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def _altered(place: Place, change: str, undo: str) -> AsyncIterator[None]:
    """Change the database for new sessions, end the present ones, and undo it after the block."""
    async with _administrator(place) as connection:
        name = await connection.fetchval("SELECT current_database()")
        try:
            await connection.execute(f'ALTER DATABASE "{name}" {change}')
            await _end_sessions(connection)
            yield
        finally:
            await connection.execute("SET default_transaction_read_only = off")
            await connection.execute(f'ALTER DATABASE "{name}" {undo}')


async def _end_sessions(connection: Any) -> None:
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


DATABASE_ROWS: Final[tuple[Row, ...]] = (
    mongodb_unreachable,
    mongodb_stepped_down,
    mongodb_killed,
    mongodb_stalled,
    postgresql_unreachable,
    postgresql_quit,
    postgresql_killed,
    postgresql_read_only,
    postgresql_full,
    postgresql_sessions_ended,
    postgresql_stalled,
)
