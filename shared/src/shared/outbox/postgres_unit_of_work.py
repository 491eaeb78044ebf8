"""Units of work in PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from typing import Final

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.errors import Outcome, database_busy, database_unavailable
from shared.outbox.inbox import Operation
from shared.outbox.postgres_inbox import insert_operation
from shared.outbox.unit_of_work import Transaction
from shared.wire import encode

__all__ = ["FairLimit", "PostgresUnitOfWork", "driver_errors"]

_STORE_RESULT: Final = (
    "WITH stored AS (INSERT INTO outbox (id, event)"
    " SELECT * FROM unnest(CAST($1 AS varchar[]), CAST($2 AS bytea[])))"
    " UPDATE inbox SET reply = $3, owner = $5 WHERE key = $4"
)
"""One statement, so that reply and events take a single round trip."""


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
            if self._session.new or self._session.dirty or self._session.deleted:
                await self._session.flush()

    async def _begin(self) -> None:
        if self._session is None:
            await self._exit.enter_async_context(self._limit)
            if self._ended is not None:  # closed while this task waited for a connection
                await self._exit.aclose()
                raise self._ended
            session = AsyncSession(self.engine, expire_on_commit=False)
            self._session = await self._exit.enter_async_context(session)
            with driver_errors():
                self._connection = await session.connection()
                self.late = await insert_operation(self._connection, self._operation)

    async def _commit(self, reply: bytes) -> None:
        if self._session is None or self._connection is None:
            return
        result = (
            [event.id for event in self.events],
            [encode(event) for event in self.events],
            None if self._operation.secret else reply,
            self._operation.key,
            self.reply_owner or None,
        )
        with driver_errors(Outcome.UNKNOWN):
            await self._connection.exec_driver_sql(_STORE_RESULT, result)
            await self._session.commit()

    async def roll_back(self) -> None:
        """See UnitOfWork.roll_back."""
        await self.close()

    async def close(self) -> None:
        """Release the connection, and roll back unless committed. May be called twice."""
        if self._ended is None:
            self._ended = RuntimeError("the unit of work has ended")
        await self._exit.aclose()


@contextmanager
def driver_errors(unconnected: int = Outcome.NO_EFFECT) -> Iterator[None]:
    """Turn errors of the driver into ServiceError: database unavailable or busy.

    `unconnected` is the outcome if no connection could be made.
    """
    try:
        yield
    except TimeoutError as error:  # also raised if a statement takes too long
        raise database_unavailable(Outcome.UNKNOWN) from error
    except PoolTimeoutError as error:
        raise database_busy() from error
    except OSError as error:
        raise database_unavailable(unconnected) from error
    except (InterfaceError, OperationalError) as error:
        raise database_unavailable(Outcome.UNKNOWN) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise database_unavailable(Outcome.UNKNOWN) from error
        raise
