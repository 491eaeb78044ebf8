"""Alembic migrations of a service's PostgreSQL database."""

import asyncio
from contextlib import suppress

import asyncpg
from alembic import command
from alembic.config import Config
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from shared.data.postgres_sessions import async_url

__all__ = ["migrate"]


def migrate(url: SecretStr, scripts: str, *, back_to: str | None = None) -> None:
    """Upgrade the database to the newest revision of the Alembic scripts in package `scripts`.

    With `back_to`, downgrade it to that revision instead. A missing database is created first, if
    the user has the permission.
    """
    asyncio.run(_create_if_missing(url.get_secret_value()))
    config = Config()
    config.set_main_option("script_location", scripts)
    config.attributes["url"] = async_url(url)
    if back_to is None:
        command.upgrade(config, "head")
    else:
        command.downgrade(config, back_to)


async def _create_if_missing(url: str) -> None:
    try:
        connection = await asyncpg.connect(url)
    except asyncpg.InvalidCatalogNameError:
        connection = await asyncpg.connect(url, database="postgres")
        name = str(make_url(url).database).replace('"', '""')
        with suppress(asyncpg.DuplicateDatabaseError):  # created by a concurrent migration
            await connection.execute(f'CREATE DATABASE "{name}"')
    await connection.close()
