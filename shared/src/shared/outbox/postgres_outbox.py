"""Units of work in PostgreSQL: the tables `inbox`, `outbox` and `versions` of each service."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from postbus.bus.v1 import Event
from shared.errors import Outcome, database_busy, database_unavailable
from shared.outbox.relay import publish_all
from shared.outbox.unit_of_work import (
    KEEP_SECONDS,
    AlreadyDone,
    Operation,
    Publish,
    Transaction,
    stored_reply,
)
from shared.wire import decode, encode

__all__ = [
    "FairLimit",
    "PostgresUnitOfWork",
    "create_work_tables",
    "driver_errors",
    "drop_work_tables",
    "forward",
    "purge",
]

_BATCH = 100
_PURGED = 10_000
_metadata = sa.MetaData()
_inbox = sa.Table(
    "inbox",
    _metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("reply", sa.LargeBinary),
    sa.Column(
        "done_at",
        sa.DateTime(timezone=True),
        nullable=False,
        server_default=sa.func.now(),
        index=True,
    ),
)
_outbox = sa.Table(
    "outbox",
    _metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("event", sa.LargeBinary, nullable=False),
)
_versions = sa.Table(
    "versions",
    _metadata,
    sa.Column("subject", sa.String(64), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
)
_ENTER = "INSERT INTO inbox (key, fingerprint) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_FOUND = sa.text("SELECT fingerprint, reply FROM inbox WHERE key = :key")
_NEWER = sa.text(
    "INSERT INTO versions (subject, version) VALUES (:subject, :version) ON CONFLICT (subject)"
    " DO UPDATE SET version = excluded.version WHERE versions.version < excluded.version"
)
_LEAVE = (
    "WITH sent AS (INSERT INTO outbox (id, event)"
    " SELECT * FROM unnest(CAST($1 AS varchar[]), CAST($2 AS bytea[])))"
    " UPDATE inbox SET reply = $3 WHERE key = $4"
)
_CLAIM = "SELECT id, event FROM outbox ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED"
_SENT = "DELETE FROM outbox WHERE id = ANY($1)"
_PURGE = sa.text(
    "DELETE FROM inbox WHERE key IN (SELECT key FROM inbox"
    " WHERE done_at < now() - make_interval(secs => :seconds) LIMIT :limit)"
)


def create_work_tables(connection: sa.Connection) -> None:
    """Create what units of work need; for migrations: `create_work_tables(op.get_bind())`."""
    _metadata.create_all(connection)


def drop_work_tables(connection: sa.Connection) -> None:
    """Undo `create_work_tables`."""
    _metadata.drop_all(connection)


class FairLimit(AbstractAsyncContextManager[None]):
    """So many connections at once, first come, first served: the pool's own queue is not fair.

    Under load, whoever gives a connection back and asks again overtakes those who wait.
    RESOURCE_EXHAUSTED with reason DATABASE_BUSY if none is free in time: the database is well.
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
    """One transaction."""

    def __init__(self, engine: AsyncEngine, turns: FairLimit, operation: Operation) -> None:
        super().__init__(operation)
        self.engine = engine
        self._exit = AsyncExitStack()
        self._turns = turns
        self._session: AsyncSession | None = None
        self._connection: AsyncConnection | None = None

    @asynccontextmanager
    async def join(self) -> AsyncIterator[AsyncSession]:
        """Give the session of the transaction; what is in it is flushed at the end."""
        async with self.turn():
            if self._session is None:
                raise RuntimeError("the work has not begun")
            yield self._session
            if self._session.new or self._session.dirty or self._session.deleted:
                await self._session.flush()

    async def _begin(self) -> None:
        if self._session is None:
            await self._exit.enter_async_context(self._turns)
            if self._ended is not None:  # the handler has, while this task of its waited
                await self._exit.aclose()
                raise self._ended
            session = AsyncSession(self.engine, expire_on_commit=False)
            self._session = await self._exit.enter_async_context(session)
            with driver_errors():
                self._connection = await session.connection()
                await self._enter(self._connection)

    async def _enter(self, connection: AsyncConnection) -> None:
        """Enter the operation into the inbox: another one of the same key is waited for."""
        operation = self._operation
        key = {"key": operation.key}
        entered = await connection.exec_driver_sql(  # spares each call SQLAlchemy's compiling
            _ENTER, (operation.key, operation.fingerprint)
        )
        if entered.rowcount == 0:
            fingerprint, reply = (await connection.execute(_FOUND, key)).one()
            operation.replayed = True
            raise AlreadyDone(stored_reply(operation, fingerprint, reply))
        if operation.version:
            newer = {"subject": operation.subject, "version": operation.version}
            operation.late = (await connection.execute(_NEWER, newer)).rowcount == 0
            if operation.late and not operation.handles_late:
                raise AlreadyDone

    async def _commit(self, reply: bytes) -> None:
        if self._session is None or self._connection is None:
            return
        stored = (
            [event.id for event in self.events],
            [encode(event) for event in self.events],
            None if self._operation.secret else reply,
            self._operation.key,
        )
        with driver_errors(Outcome.UNKNOWN):
            await self._connection.exec_driver_sql(_LEAVE, stored)
            await self._session.commit()

    async def roll_back(self) -> None:
        """See UnitOfWork.roll_back."""
        await self.close()

    async def close(self) -> None:
        """Undo what is not committed."""
        if self._ended is None:
            self._ended = RuntimeError("the work has ended")
        await self._exit.aclose()


async def forward(engine: AsyncEngine, publish: Publish) -> int:
    """See Store.forward. Events that another worker has in hand are left to it."""
    async with engine.begin() as connection:
        rows = (await connection.exec_driver_sql(_CLAIM, (_BATCH,))).all()
        done, failure = await publish_all(publish, [decode(Event, row.event) for row in rows])
        if done:
            await connection.exec_driver_sql(_SENT, (done,))
    if failure is not None:
        raise failure
    return len(done)


async def purge(engine: AsyncEngine) -> None:
    """See Store.purge."""
    purged = _PURGED
    while purged == _PURGED:
        async with engine.begin() as connection:
            old = {"seconds": KEEP_SECONDS, "limit": _PURGED}
            purged = (await connection.execute(_PURGE, old)).rowcount


@contextmanager
def driver_errors(unconnected: int = Outcome.NO_EFFECT) -> Iterator[None]:
    """Turn what the driver raises while the database is away into UNAVAILABLE.

    `unconnected` is what is then known of the effect, if there was no connection.
    """
    try:
        yield
    except TimeoutError as error:  # perhaps of a statement
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
