"""The PostgreSQL database of a service: SQLModel sessions over asyncpg, and units of work."""

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

from shared.outbox.inbox import Operation, OperationResult
from shared.outbox.outbox import Publish
from shared.outbox.postgres_inbox import erase_replies, purge
from shared.outbox.postgres_outbox import forward
from shared.outbox.postgres_unit_of_work import FairLimit, PostgresUnitOfWork, driver_errors
from shared.outbox.unit_of_work import Execution, current_unit_of_work

__all__ = ["Postgres", "async_url", "open_postgres"]

_POOL_SIZE: Final = 10
_CONNECT_TIMEOUT: Final = 2.0
_COMMAND_TIMEOUT: Final = 10.0
_POOL_TIMEOUT: Final = 2.0


class Postgres:
    """One database; the Store of a service's units of work. Safe for concurrent use."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.committed = asyncio.Event()
        self._engine = engine
        self._reader = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._limit = FairLimit(_POOL_SIZE, _POOL_TIMEOUT)

    def transaction(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Provide the session of the current unit of work, or of a new transaction.

        A new transaction is committed at the end of the block, or rolled back on an error; a unit
        of work is committed after the handler has succeeded. Both flush the session at the end of
        the block, which can raise IntegrityError. UNAVAILABLE with reason DATABASE_UNAVAILABLE if
        the database cannot be reached, RESOURCE_EXHAUSTED with reason DATABASE_BUSY if no
        connection is free within two seconds.
        """
        return self._session(self._engine, begin=True)

    def reading(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Provide the session of the current unit of work, or a session without a transaction.

        Without a transaction a query takes one round trip instead of three. Errors as in
        `transaction`.
        """
        return self._session(self._reader, begin=False)

    @asynccontextmanager
    async def _session(self, engine: AsyncEngine, *, begin: bool) -> AsyncIterator[AsyncSession]:
        with driver_errors():
            if unit := self._unit_of_work():
                async with unit.join() as session:
                    yield session
            else:
                async with (
                    self._limit,
                    AsyncSession(engine, expire_on_commit=False) as session,
                    session.begin() if begin else nullcontext(),
                ):
                    yield session

    def _unit_of_work(self) -> PostgresUnitOfWork | None:
        """Return the current unit of work, if it belongs to this database."""
        unit = current_unit_of_work()
        if isinstance(unit, PostgresUnitOfWork) and unit.engine is self._engine:
            return unit
        return None

    async def perform(self, operation: Operation, execute: Execution) -> OperationResult:
        """See Store.perform."""
        unit = PostgresUnitOfWork(self._engine, self._limit, operation)
        try:
            result = await unit.run(execute)
        finally:
            await unit.close()
        if unit.events:
            self.committed.set()
        return result

    async def forward(self, publish: Publish) -> int:
        """See Store.forward."""
        with driver_errors():
            async with self._limit:
                return await forward(self._engine, publish)

    async def purge(self) -> None:
        """See Store.purge."""
        with driver_errors():
            async with self._limit:
                await purge(self._engine)

    async def erase_replies(self, owner: str) -> bool:
        """See Store.erase_replies. Part of the current unit of work."""
        async with self.transaction() as session:
            return await erase_replies(await session.connection(), owner)

    async def ping(self) -> None:
        """Return if the database responds; raise if not."""
        async with self._engine.connect() as connection:
            await connection.execute(text("SELECT 1"))


@asynccontextmanager
async def open_postgres(url: SecretStr) -> AsyncIterator[Postgres]:
    """Open a pool of connections to `url` (postgresql://...), and close it at the end.

    The pool connects at first use, so the server need not be available yet.
    """
    engine = create_async_engine(
        async_url(url),
        pool_size=_POOL_SIZE + 1,  # one more for `ping`, which takes no place in the limit
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
    """Replace a closed connection at checkout; `pool_pre_ping` would need three round trips."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def async_url(url: SecretStr) -> str:
    """Return the URL in the form of SQLAlchemy, with asyncpg as the driver."""
    parsed = make_url(url.get_secret_value()).set(drivername="postgresql+asyncpg")
    return parsed.render_as_string(hide_password=False)
