"""Units of work in MongoDB.

The changes of a killed worker's transaction stay locked until the server's
`transactionLifetimeLimitSeconds`: set it to 5 instead of the default of 60.
"""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, Final

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConnectionFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from shared.context import current_context
from shared.errors import Outcome, database_unavailable
from shared.outbox.inbox import AlreadyDone, Operation, OperationResult
from shared.outbox.mongo_errors import driver_errors, is_transient, service_error
from shared.outbox.mongo_inbox import MongoInbox
from shared.outbox.unit_of_work import Execution, Transaction, current_unit_of_work

__all__ = [
    "MongoUnitOfWork",
    "begin_transaction",
    "perform",
    "session_of",
    "time_left",
    "unit_of_work_of",
]

Database = AsyncDatabase[dict[str, Any]]

_FIRST_DELAY: Final = 0.002
_LONGEST_DELAY: Final = 0.1
_ANSWER_SECONDS: Final = 0.25
"""Before the deadline of the call, retries end this early, so that the error reaches the caller."""
_RECONNECT_SECONDS: Final = 0.6
"""The time for which a transaction without a server is retried. The driver looks again after 0.5 s,
so that a call survives a change of the primary and fails within a second without one."""


class MongoUnitOfWork(Transaction):
    """One transaction of a session."""

    def __init__(
        self, database: Database, session: AsyncClientSession, operation: Operation
    ) -> None:
        super().__init__(operation)
        self.database = database
        self.counted: dict[ObjectId, str] = {}
        """The differences of counters, keys by id; see `Counters`."""
        self._inbox = MongoInbox(database, session)
        self._session = session

    @asynccontextmanager
    async def join(self) -> AsyncIterator[AsyncClientSession]:
        """Provide the session of the transaction."""
        async with self.exclusive():
            yield self._session

    async def _begin(self) -> None:
        if self._session.in_transaction:
            return
        await begin_transaction(self._session)
        operation = self._operation
        with driver_errors():
            done = await self._inbox.find(operation)
            if done is None:
                self.late = await self._inbox.is_late(operation)
                if self.late and not operation.handles_late:
                    done = AlreadyDone()
            if done is not None:
                await self._commit_transaction()  # so that the majority has what was read
                raise done

    async def _commit(self, reply: bytes) -> None:
        """Insert the operation last, because a killed worker's transaction keeps its locks.

        Of two concurrent transactions with the same key only one commits. The other one fails with
        a conflict, is retried, and finds the stored reply.
        """
        operation = self._operation
        if not self._session.in_transaction:
            return
        with driver_errors():
            if operation.version and not self.late:
                await self._inbox.raise_version(operation)
            await self._inbox.insert(operation, reply, self.events, owner=self.reply_owner)
        await self._commit_transaction()

    async def _commit_transaction(self) -> None:
        """Commit. Repeat while the server reports UnknownTransactionCommitResult.

        Raises UNAVAILABLE with the outcome UNKNOWN if the deadline of the call is near.
        """
        with driver_errors(committing=True):
            if await self._try_commit():
                return
            try:
                left = time_left()
                async with asyncio.timeout(None if left == math.inf else left):
                    committed = False
                    while not committed:
                        await asyncio.sleep(_LONGEST_DELAY)
                        committed = await self._try_commit()
            except TimeoutError:
                raise database_unavailable(Outcome.UNKNOWN) from None

    async def _try_commit(self) -> bool:
        """Return False if the result of the commit is unknown."""
        try:
            await self._session.commit_transaction()
        except PyMongoError as error:
            if not error.has_error_label("UnknownTransactionCommitResult"):
                raise
            return False
        return True


async def begin_transaction(session: AsyncClientSession) -> AbstractAsyncContextManager[Any]:
    """Begin a transaction, whatever the address says; the context commits it, or aborts it."""
    return await session.start_transaction(
        read_concern=ReadConcern("snapshot"),
        write_concern=WriteConcern("majority", j=True),
        read_preference=ReadPreference.PRIMARY,
    )


def unit_of_work_of(database: Database) -> MongoUnitOfWork | None:
    """Return the current unit of work, if it belongs to this database."""
    unit = current_unit_of_work()
    if isinstance(unit, MongoUnitOfWork) and unit.database is database:
        return unit
    return None


@asynccontextmanager
async def session_of(database: Database) -> AsyncIterator[AsyncClientSession | None]:
    """Provide the session of the current unit of work, or None; raise errors as ServiceError."""
    unit = unit_of_work_of(database)
    with driver_errors():
        if unit is not None:
            async with unit.join() as session:
                yield session
        else:
            yield None


async def perform(
    database: Database, operation: Operation, execute: Execution, *, retry_lock: asyncio.Lock
) -> tuple[OperationResult, MongoUnitOfWork]:
    """Return the result of an operation, and its unit of work; see Store.perform.

    After a write conflict, retries run one at a time under `retry_lock`. Otherwise a hundred
    concurrent writers of one document would keep aborting each other. Raises ABORTED,
    TRANSACTION_CONFLICT if there is still a conflict at the end of the call's budget.
    """
    lock: AbstractAsyncContextManager[None] = nullcontext()
    delay, began = _FIRST_DELAY, time.monotonic()
    while True:
        async with lock, database.client.start_session() as session:
            unit = MongoUnitOfWork(database, session, operation)
            try:
                return await unit.run(execute), unit
            except PyMongoError as error:
                if not is_transient(error):
                    raise
                lost = isinstance(error, ConnectionFailure)
                gone = lost and time.monotonic() - began > _RECONNECT_SECONDS
                if gone or time_left() < delay:
                    raise service_error(error) from None
        await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
        delay, lock = min(2 * delay, _LONGEST_DELAY), lock if lost else retry_lock


def time_left() -> float:
    """Return the seconds for which the current call may retry; infinite without a deadline."""
    context = current_context()
    return math.inf if context is None else context.remaining - _ANSWER_SECONDS
