"""Units of work in MongoDB.

The changes of a killed worker's transaction stay locked until the server's
`transactionLifetimeLimitSeconds`: set it to 5 instead of the default of 60.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    ConnectionFailure,
    DuplicateKeyError,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from shared.errors import Code, Outcome, ServiceError, database_busy, database_unavailable
from shared.outbox.inbox import AlreadyDone, Operation, OperationResult
from shared.outbox.mongo_inbox import MongoInbox
from shared.outbox.unit_of_work import Execution, Transaction

__all__ = ["MongoUnitOfWork", "driver_errors", "perform"]

Database = AsyncDatabase[dict[str, Any]]

_FIRST_DELAY: Final = 0.002
_LONGEST_DELAY: Final = 0.1


class MongoUnitOfWork(Transaction):
    """One transaction of a session."""

    def __init__(
        self, database: Database, session: AsyncClientSession, operation: Operation
    ) -> None:
        super().__init__(operation)
        self.database = database
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
        await self._session.start_transaction(
            read_concern=ReadConcern("snapshot"), write_concern=WriteConcern("majority", j=True)
        )
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
        with driver_errors(Outcome.UNKNOWN):
            if operation.version and not self.late:
                await self._inbox.raise_version(operation)
            await self._inbox.insert(operation, reply, self.events, owner=self.reply_owner)
            await self._commit_transaction()

    async def _commit_transaction(self) -> None:
        """Commit. Repeat while the server reports UnknownTransactionCommitResult."""
        while True:
            try:
                return await self._session.commit_transaction()
            except PyMongoError as error:
                if not error.has_error_label("UnknownTransactionCommitResult"):
                    raise
            await asyncio.sleep(_LONGEST_DELAY)


async def perform(
    database: Database, operation: Operation, execute: Execution, *, retry_lock: asyncio.Lock
) -> tuple[OperationResult, bool]:
    """Return the result of an operation, and whether it has stored events; see Store.perform.

    After a write conflict, retries run one at a time under `retry_lock`. Otherwise a hundred
    concurrent writers of one document would keep aborting each other.
    """
    lock: AbstractAsyncContextManager[None] = nullcontext()
    delay = _FIRST_DELAY
    while True:
        async with lock, database.client.start_session() as session:
            unit = MongoUnitOfWork(database, session, operation)
            try:
                return await unit.run(execute), bool(unit.events)
            except PyMongoError as error:
                if not error.has_error_label("TransientTransactionError"):
                    raise
        await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
        delay, lock = min(2 * delay, _LONGEST_DELAY), retry_lock


@contextmanager
def driver_errors(unconnected: int = Outcome.NO_EFFECT) -> Iterator[None]:
    """Turn errors of the driver into ServiceError, except write conflicts, which `perform` retries.

    `unconnected` is the outcome if no server was found.
    """
    try:
        yield
    except DuplicateKeyError as error:
        raise ServiceError(
            Code.ALREADY_EXISTS, "ALREADY_EXISTS", "The resource exists already."
        ) from error
    except ServerSelectionTimeoutError as error:
        raise database_unavailable(unconnected) from error
    except WaitQueueTimeoutError as error:
        raise database_busy() from error
    except ConnectionFailure as error:
        raise database_unavailable(Outcome.UNKNOWN) from error
