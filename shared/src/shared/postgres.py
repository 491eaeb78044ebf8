"""PostgreSQL for a service: SQLModel sessions over asyncpg."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.errors import Outcome, database_away

__all__ = ["Postgres", "async_url", "open_postgres"]

_POOL_SIZE: Final = 10
_CONNECT_TIMEOUT: Final = 2.0
_COMMAND_TIMEOUT: Final = 10.0
_POOL_TIMEOUT: Final = 2.0


class Postgres:
    """Sessions of one database. Safe for concurrent use."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """Open a session; commit at the end, roll back on an error.

        UNAVAILABLE with reason DATABASE_UNAVAILABLE if the database cannot be reached.
        """
        try:
            async with (
                AsyncSession(self._engine, expire_on_commit=False) as session,
                session.begin(),
            ):
                yield session
        except (PoolTimeoutError, OSError) as error:  # there was no connection to begin with
            raise database_away(Outcome.NO_EFFECT) from error
        except (InterfaceError, OperationalError) as error:
            raise database_away(Outcome.UNKNOWN) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise database_away(Outcome.UNKNOWN) from error
            raise

    async def ping(self) -> None:
        """Return if the database answers; raise if not."""
        async with self._engine.connect() as connection:
            await connection.execute(text("SELECT 1"))


@asynccontextmanager
async def open_postgres(url: SecretStr) -> AsyncIterator[Postgres]:
    """Open a pool of connections to `url` (postgresql://...), and close it at the end.

    Connects at first use, so that the database may come later.
    """
    engine = create_async_engine(
        async_url(url),
        pool_size=_POOL_SIZE,
        max_overflow=0,
        pool_timeout=_POOL_TIMEOUT,
        pool_pre_ping=True,
        connect_args={"timeout": _CONNECT_TIMEOUT, "command_timeout": _COMMAND_TIMEOUT},
    )
    try:
        yield Postgres(engine)
    finally:
        await engine.dispose()


def async_url(url: SecretStr) -> str:
    """Return the URL as SQLAlchemy wants it, with asyncpg as the driver."""
    parsed = make_url(url.get_secret_value()).set(drivername="postgresql+asyncpg")
    return parsed.render_as_string(hide_password=False)
