"""Alembic migrations of a service's PostgreSQL database; safe to start many times at once."""

import asyncio
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import sqlalchemy as sa
from alembic import command, context
from alembic.config import Config
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError

from shared.data.postgres_connections import connect, create_engine

__all__ = ["migrate", "run_scripts"]

_LOCK_TIMEOUT: Final = "3s"
"""Readers of a table wait for a migration that waits for the table, no longer than this."""
_LOCK_TRIES: Final = 20
_LOCK_PAUSE: Final = 2.0
"""Seconds between two tries, in which the waiting readers and writers proceed."""
_CREATED_SECONDS: Final = 30.0
"""Time in which a new database can be reached; pgbouncer repeats an error for 15 seconds."""
_CREATED_POLL: Final = 0.5
_ONE_AT_A_TIME: Final = sa.text("SELECT pg_advisory_xact_lock(7035880)")
"""Waits for the migrations of other processes; the number is arbitrary."""
_MISSING_DATABASE: Final = ("3D000", "08P01")  # 08P01 by pgbouncer, for every refusal
_CREATED_BY_ANOTHER: Final = ("42P04", "23505")
_LOCKED: Final = ("55P03", "40P01")


def migrate(url: SecretStr, scripts: str, *, back_to: str | None = None) -> None:
    """Upgrade the database to the newest revision of the Alembic scripts in package `scripts`.

    With `back_to`, downgrade it to that revision instead. A missing database is created first, if
    the user has the permission. Of many processes at once, one migrates and the others wait. Exits
    with a message if a table stays locked by others for about a minute.
    """
    asyncio.run(_create_if_missing(url))
    config = Config()
    config.set_main_option("script_location", scripts)
    config.attributes["url"] = url
    if back_to is None:
        _repeat_while_locked(partial(command.upgrade, config, "head"))
    else:
        _repeat_while_locked(partial(command.downgrade, config, back_to))


def run_scripts(metadata: sa.MetaData) -> None:
    """Run the scripts that Alembic has selected, in one transaction; for `env.py`."""
    asyncio.run(_run_scripts(metadata))


async def _run_scripts(metadata: sa.MetaData) -> None:
    engine = create_engine(context.config.attributes["url"], pooled=True)
    try:
        async with engine.begin() as connection:
            await connection.execute(_ONE_AT_A_TIME)
            # not before: the line above waits as long as another migration runs
            await connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            await connection.run_sync(_run, metadata)
    finally:
        await engine.dispose()


def _run(connection: sa.Connection, metadata: sa.MetaData) -> None:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


def _repeat_while_locked(run: Callable[[], None]) -> None:
    """Run a migration, again while another session holds a lock that it needs."""
    for _ in range(_LOCK_TRIES):
        try:
            run()
            return
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _LOCKED:
                raise
        time.sleep(_LOCK_PAUSE * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
    sys.exit("A transaction of another client keeps a table locked. End it, and try again.")


async def _create_if_missing(url: SecretStr) -> None:
    try:
        connection = await connect(url)
    except asyncpg.PostgresError as error:
        name = _database_name(url)
        if error.sqlstate not in _MISSING_DATABASE or not name:
            raise
        await _create(url, name)
        connection = await _connect_to_new(url)
    await connection.close()


async def _create(url: SecretStr, name: str) -> None:
    """Create the database, unless another process does the same."""
    connection = await connect(url, database="postgres")
    try:
        query = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)"
        if not await connection.fetchval(query, name):
            quoted = name.replace('"', '""')
            await connection.execute(f'CREATE DATABASE "{quoted}"')
    except asyncpg.PostgresError as error:
        if error.sqlstate not in _CREATED_BY_ANOTHER:
            raise
    finally:
        await connection.close()


async def _connect_to_new(url: SecretStr) -> asyncpg.Connection:
    end = time.monotonic() + _CREATED_SECONDS
    while True:
        try:
            return await connect(url)
        except asyncpg.PostgresError as error:
            if error.sqlstate not in _MISSING_DATABASE or time.monotonic() > end:
                raise
        await asyncio.sleep(_CREATED_POLL)


def _database_name(url: SecretStr) -> str:
    parts = urlsplit(url.get_secret_value())
    parameters = parse_qs(parts.query)
    return unquote(parts.path[1:]) or parameters.get("dbname", parameters.get("database", [""]))[-1]
