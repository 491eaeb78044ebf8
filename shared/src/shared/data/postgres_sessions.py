"""PostgreSQL for a service: SQLModel sessions over asyncpg."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, Final

from pydantic import SecretStr
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.outbox.postgres_outbox import (
    FairLimit,
    PostgresUnitOfWork,
    driver_errors,
    forward,
    purge,
)
from shared.outbox.unit_of_work import Handle, Operation, Publish, current_unit_of_work

__all__ = ["Postgres", "async_url", "open_postgres"]

_POOL_SIZE: Final = 10
_CONNECT_TIMEOUT: Final = 2.0
_COMMAND_TIMEOUT: Final = 10.0
_POOL_TIMEOUT: Final = 2.0


class Postgres:
    """Sessions of one database, and a Store of works. Safe for concurrent use."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.committed = asyncio.Event()
        self._engine = engine
        self._reader = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._turns = FairLimit(_POOL_SIZE, _POOL_TIMEOUT)

    def transaction(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Give the session of the current work, or open one of its own.

        Its own is committed at the end and rolled back on an error; that of a work is committed
        once the handler has succeeded. Conflicts show at the end of either: IntegrityError.
        UNAVAILABLE with reason DATABASE_UNAVAILABLE if the database cannot be reached,
        RESOURCE_EXHAUSTED with reason DATABASE_BUSY if no connection is free in two seconds.
        """
        return self._session(self._engine, begin=True)

    def reading(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Give the session of the current work, or one that reads as it is asked.

        Without a transaction each query is one round trip in place of three. Raises as
        `transaction` does.
        """
        return self._session(self._reader, begin=False)

    @asynccontextmanager
    async def _session(self, engine: AsyncEngine, *, begin: bool) -> AsyncIterator[AsyncSession]:
        with driver_errors():
            if work := self._work():
                async with work.join() as session:
                    yield session
            else:
                async with (
                    self._turns,
                    AsyncSession(engine, expire_on_commit=False) as session,
                    session.begin() if begin else nullcontext(),
                ):
                    yield session

    def _work(self) -> PostgresUnitOfWork | None:
        """Return the current work, if it is one of this database."""
        work = current_unit_of_work()
        return (
            work if isinstance(work, PostgresUnitOfWork) and work.engine is self._engine else None
        )

    async def perform(self, operation: Operation, handler: Handle) -> bytes:
        """See Store.perform."""
        work = PostgresUnitOfWork(self._engine, self._turns, operation)
        try:
            reply = await work.run(handler, begin_immediately=operation.begin_immediately)
        finally:
            await work.close()
        if work.events:
            self.committed.set()
        return reply

    async def forward(self, publish: Publish) -> int:
        """See Store.forward."""
        with driver_errors():
            async with self._turns:
                return await forward(self._engine, publish)

    async def purge(self) -> None:
        """See Store.purge."""
        with driver_errors():
            async with self._turns:
                await purge(self._engine)

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
        pool_size=_POOL_SIZE + 1,  # one for `ping`, which never waits for work
        max_overflow=0,
        pool_timeout=_POOL_TIMEOUT,
        connect_args={"timeout": _CONNECT_TIMEOUT, "command_timeout": _COMMAND_TIMEOUT},
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    try:
        yield Postgres(engine)
    finally:
        await engine.dispose()


def _refuse_closed(connection: Any, *_: object) -> None:
    """Have the pool open another connection: what `pool_pre_ping` asks the server thrice."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def async_url(url: SecretStr) -> str:
    """Return the URL as SQLAlchemy wants it, with asyncpg as the driver."""
    parsed = make_url(url.get_secret_value()).set(drivername="postgresql+asyncpg")
    return parsed.render_as_string(hide_password=False)
