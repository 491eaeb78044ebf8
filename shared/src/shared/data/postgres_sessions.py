"""The PostgreSQL database of a service: SQLModel sessions over asyncpg, and units of work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.data.postgres_connections import create_engine
from shared.outbox.inbox import Operation, OperationResult
from shared.outbox.outbox import Publish
from shared.outbox.postgres_errors import driver_errors, reading_errors
from shared.outbox.postgres_inbox import erase_replies, purge
from shared.outbox.postgres_outbox import forward
from shared.outbox.postgres_unit_of_work import (
    FairLimit,
    PostgresUnitOfWork,
    commit_session,
    flush,
    perform,
)
from shared.outbox.unit_of_work import Execution, current_unit_of_work

__all__ = ["Postgres", "open_postgres"]

_POOL_SIZE: Final = 10
_CONNECT_TIMEOUT: Final = 2.0
_COMMAND_TIMEOUT: Final = 10.0
_POOL_TIMEOUT: Final = 2.0
_RECYCLE_SECONDS: Final = 300
"""Age of a connection at which it is replaced, so that no failover stays unnoticed for longer."""
_PROBE: Final = (
    "WITH nothing AS (DELETE FROM inbox WHERE false) SELECT version_num FROM alembic_version"
)
"""Fails if the process may not write, also if the server is read-only; changes nothing."""


class Postgres:
    """One database; the Store of a service's units of work. Safe for concurrent use."""

    def __init__(self, engine: AsyncEngine, *, pooled: bool = False) -> None:
        self.committed = asyncio.Event()
        self._engine = engine
        # a pooler may send the parts of a statement outside a transaction to different servers
        autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._reader = engine if pooled else autocommit
        self._limit = FairLimit(_POOL_SIZE, _POOL_TIMEOUT)

    def transaction(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Provide the session of the current unit of work, or of a new transaction.

        A new transaction is committed at the end of the block, or rolled back on an error; a unit
        of work is committed after the handler has succeeded. Both flush the session at the end of
        the block. UNAVAILABLE with reason DATABASE_UNAVAILABLE if the database cannot do the work,
        ABORTED with reason DATABASE_CONFLICT if it has rolled back, RESOURCE_EXHAUSTED with reason
        DATABASE_BUSY if no connection is free within two seconds. DatabaseFaultError for any other
        error of the database, with the name of the violated constraint, if it is one.
        """
        return self._session(self._engine, commit=True)

    def reading(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Provide the session of the current unit of work, or a session without a transaction.

        Without a transaction a query takes one round trip instead of three. Errors as in
        `transaction`, but UNAVAILABLE in place of ABORTED.
        """
        return self._session(self._reader, commit=False)

    @asynccontextmanager
    async def _session(self, engine: AsyncEngine, *, commit: bool) -> AsyncIterator[AsyncSession]:
        with driver_errors if commit else reading_errors:
            if unit := self._unit_of_work():
                async with unit.join() as session:
                    yield session
                return
            async with self._limit, AsyncSession(engine, expire_on_commit=False) as session:
                yield session
                if commit:
                    await flush(session)
                    await commit_session(session)

    def _unit_of_work(self) -> PostgresUnitOfWork | None:
        """Return the current unit of work, if it belongs to this database."""
        unit = current_unit_of_work()
        if isinstance(unit, PostgresUnitOfWork) and unit.engine is self._engine:
            return unit
        return None

    async def perform(self, operation: Operation, execute: Execution) -> OperationResult:
        """See Store.perform."""
        result, has_events = await perform(self._engine, self._limit, operation, execute)
        if has_events:
            self.committed.set()
        return result

    async def forward(self, publish: Publish) -> int:
        """See Store.forward."""
        with driver_errors:
            async with self._limit:
                return await forward(self._engine, publish)

    async def purge(self) -> None:
        """See Store.purge."""
        with driver_errors:
            async with self._limit:
                await purge(self._engine)

    async def erase_replies(self, owner: str) -> bool:
        """See Store.erase_replies. Part of the current unit of work."""
        async with self.transaction() as session:
            return await erase_replies(await session.connection(), owner)

    async def stored_revision(self) -> str:
        """Return the revision of the schema, "" if it has none.

        UNAVAILABLE, with a NotReadyError as its cause, if the process may not write.
        """
        with driver_errors:
            async with self._reader.connect() as connection:
                return (await connection.exec_driver_sql(_PROBE)).scalar_one_or_none() or ""


@asynccontextmanager
async def open_postgres(address: SecretStr, *, pooled: bool = False) -> AsyncIterator[Postgres]:
    """Open a pool of connections to `address`, and close it at the end.

    The pool connects at first use, so the server need not be available yet. With `pooled`, the
    address is that of a pooler in transaction mode; see `create_engine`.
    """
    engine = create_engine(
        address,
        pooled=pooled,
        pool_size=_POOL_SIZE + 1,  # one more for the probe, which ignores the limit
        max_overflow=0,
        pool_timeout=_POOL_TIMEOUT,
        pool_recycle=_RECYCLE_SECONDS,
        connect_args={"timeout": _CONNECT_TIMEOUT, "command_timeout": _COMMAND_TIMEOUT},
    )
    try:
        yield Postgres(engine, pooled=pooled)
    finally:
        await engine.dispose()
