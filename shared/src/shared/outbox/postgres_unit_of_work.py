"""Units of work in PostgreSQL."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from postbus import reasons
from shared.context import current_context
from shared.errors import Outcome, ServiceError, database_busy
from shared.outbox.inbox import Operation, OperationResult
from shared.outbox.postgres_errors import commit_errors, driver_errors
from shared.outbox.postgres_inbox import insert_operation
from shared.outbox.unit_of_work import Execution, Transaction
from shared.wire import encode

__all__ = ["FairLimit", "PostgresUnitOfWork", "commit_session", "flush", "perform"]

_STORE_RESULT: Final = (
    "WITH stored AS (INSERT INTO outbox (id, event, subject)"
    " SELECT * FROM unnest(CAST($1 AS varchar[]), CAST($2 AS bytea[]), CAST($3 AS varchar[])))"
    " UPDATE inbox SET reply = $4, owner = $6 WHERE key = $5"
)
"""One statement, so that reply and events take a single round trip."""
_FIRST_DELAY: Final = 0.005
_LONGEST_DELAY: Final = 0.2
_RETRY_SECONDS: Final = 5.0
"""The time for which work that the database has rolled back is repeated, within the budget."""


class FairLimit(AbstractAsyncContextManager[None]):
    """A fair limit on concurrent connections.

    SQLAlchemy's pool is not fair: under load, a task that returns a connection can take it again
    before the waiting tasks. RESOURCE_EXHAUSTED, DATABASE_BUSY if no connection is free within
    `timeout` seconds.
    """

    def __init__(self, connections: int, timeout: float) -> None:
        self._free = asyncio.Semaphore(connections)
        self._timeout = timeout

    async def __aenter__(self) -> None:
        try:
            if self._free.locked():
                async with asyncio.timeout(self._timeout):
                    await self._free.acquire()
            else:
                await self._free.acquire()
        except TimeoutError:
            raise database_busy() from None

    async def __aexit__(self, *_error: object) -> None:
        self._free.release()


class PostgresUnitOfWork(Transaction):
    """One transaction with its connection."""

    def __init__(self, engine: AsyncEngine, limit: FairLimit, operation: Operation) -> None:
        super().__init__(operation)
        self.engine = engine
        self._exit = AsyncExitStack()
        self._limit = limit
        self._session: AsyncSession | None = None
        self._connection: AsyncConnection | None = None

    @asynccontextmanager
    async def join(self) -> AsyncIterator[AsyncSession]:
        """Provide the session of the transaction, and flush it at the end of the block."""
        async with self.exclusive():
            if self._session is None:
                raise RuntimeError("the unit of work has not begun")
            yield self._session
            await flush(self._session)

    async def _begin(self) -> None:
        if self._session is None:
            await self._exit.enter_async_context(self._limit)
            if self._ended is not None:  # closed while this task waited for a connection
                await self._exit.aclose()
                raise self._ended
            session = AsyncSession(self.engine, expire_on_commit=False)
            self._session = await self._exit.enter_async_context(session)
            with driver_errors:
                self._connection = await session.connection()
                self.late = await insert_operation(self._connection, self._operation)

    async def _commit(self, reply: bytes) -> None:
        if self._session is None or self._connection is None:
            return
        result = (
            [event.id for event in self.events],
            [encode(event) for event in self.events],
            [event.subject for event in self.events],
            None if self._operation.secret else reply,
            self._operation.key,
            self.reply_owner or None,
        )
        with driver_errors:
            await self._connection.exec_driver_sql(_STORE_RESULT, result)
        await commit_session(self._session)

    async def roll_back(self) -> None:
        """See UnitOfWork.roll_back."""
        await self.close()

    async def close(self) -> None:
        """Release the connection, and roll back unless committed. May be called twice."""
        if self._ended is None:
            self._ended = RuntimeError("the unit of work has ended")
        with driver_errors:
            await self._exit.aclose()


async def flush(session: AsyncSession) -> None:
    """Send the changes of objects, if there are any."""
    if session.new or session.dirty or session.deleted:
        await session.flush()


async def commit_session(session: AsyncSession) -> None:
    """Commit; raise the errors of `commit_errors`.

    After an unknown outcome the connection is dropped: otherwise a rollback would follow when the
    session is closed, and its error, with NO_EFFECT, would replace this one.
    """
    try:
        with commit_errors:
            await session.commit()
    except ServiceError as error:
        if error.outcome == Outcome.UNKNOWN:
            await session.invalidate()
        raise


async def perform(
    engine: AsyncEngine, limit: FairLimit, operation: Operation, execute: Execution
) -> tuple[OperationResult, bool]:
    """Return the result of an operation, and whether it has stored events; see Store.perform.

    The work runs again if the database has rolled it back, such as after a deadlock.
    """
    context = current_context()
    seconds = min(context.remaining, _RETRY_SECONDS) if context else _RETRY_SECONDS
    last, delay = time.monotonic() + seconds, _FIRST_DELAY
    while True:
        unit = PostgresUnitOfWork(engine, limit, operation)
        try:
            return await unit.run(execute), bool(unit.events)
        except ServiceError as error:
            if error.reason != reasons.DATABASE_CONFLICT or time.monotonic() + delay > last:
                raise
        finally:
            await unit.close()
        await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
        delay = min(2 * delay, _LONGEST_DELAY)
