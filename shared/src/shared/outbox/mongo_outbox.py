"""Units of work in MongoDB: the collections `inbox` and `versions` of each service.

An operation's entry in the inbox holds its events as well, until the broker has them: a document
more in each transaction would cost a fifth of it.

What the transaction of a killed worker wrote stays locked until the server's
`transactionLifetimeLimitSeconds`: have it at 5 rather than its default of 60.
"""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
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

from postbus.bus.v1 import Event
from shared.errors import Code, Outcome, ServiceError, database_busy, database_unavailable
from shared.outbox.relay import publish_all
from shared.outbox.unit_of_work import (
    KEEP_SECONDS,
    AlreadyDone,
    Handle,
    Operation,
    Publish,
    Transaction,
    stored_reply,
)
from shared.wire import decode, encode

__all__ = ["MongoUnitOfWork", "create_work_indexes", "driver_errors", "forward", "perform"]

Document = dict[str, Any]
Database = AsyncDatabase[Document]

_BATCH: Final = 100
_LEASE: Final = timedelta(seconds=7)
"""How long a worker may take to forward what it has claimed, before another one does."""
_FIRST_DELAY: Final = 0.002
_LONGEST_DELAY: Final = 0.1
_WAITING: Final = [("until", 1), ("event_id", 1)]
"""What waits to be forwarded: free since when, and in which order."""
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)


async def create_work_indexes(database: Database) -> None:
    """Create what units of work need."""
    await database["inbox"].create_index("done_at", expireAfterSeconds=KEEP_SECONDS)
    await database["inbox"].create_index(_WAITING, sparse=True)


class MongoUnitOfWork(Transaction):
    """One transaction."""

    def __init__(
        self, database: Database, session: AsyncClientSession, operation: Operation
    ) -> None:
        super().__init__(operation)
        self.database = database
        self._inbox = database["inbox"]
        self._versions = database["versions"]
        self._session = session

    @asynccontextmanager
    async def join(self) -> AsyncIterator[AsyncClientSession]:
        """Give the session of the transaction."""
        async with self.turn():
            yield self._session

    async def _begin(self) -> None:
        if self._session.in_transaction:
            return
        await self._session.start_transaction(
            read_concern=ReadConcern("snapshot"), write_concern=WriteConcern("majority", j=True)
        )
        operation = self._operation
        with driver_errors():
            found = await self._inbox.find_one({"_id": operation.key}, session=self._session)
            if found is not None:
                await self._commit_transaction()  # what was read is then on the majority
                operation.replayed = True
                raise AlreadyDone(stored_reply(operation, found["fingerprint"], found["reply"]))
            if operation.version:
                newer = {"_id": operation.subject, "version": {"$gte": operation.version}}
                operation.late = bool(await self._versions.find_one(newer, session=self._session))
                if operation.late and not operation.handles_late:
                    await self._commit_transaction()
                    raise AlreadyDone

    async def _commit(self, reply: bytes) -> None:
        """Enter the operation last: a transaction whose worker is killed holds what it wrote.

        Of two that run at once one commits; the other finds a conflict, and then the reply.
        """
        operation, session = self._operation, self._session
        if not session.in_transaction:
            return
        entry: dict[str, Any] = {
            "_id": operation.key,
            "fingerprint": operation.fingerprint,
            "reply": None if operation.secret else reply,
        }
        if self.events:
            entry["events"] = [encode(event) for event in self.events]
            entry |= {"until": _LONG_AGO, "event_id": self.events[0].id}
        else:
            entry["done_at"] = datetime.now(UTC)
        with driver_errors(Outcome.UNKNOWN):
            if operation.version and not operation.late:
                version = {"$set": {"version": operation.version}}
                subject = {"_id": operation.subject}
                await self._versions.update_one(subject, version, upsert=True, session=session)
            await self._inbox.insert_one(entry, session=session)
            await self._commit_transaction()

    async def _commit_transaction(self) -> None:
        """Commit; while nobody knows whether it is committed, do it again."""
        while True:
            try:
                return await self._session.commit_transaction()
            except PyMongoError as error:
                if not error.has_error_label("UnknownTransactionCommitResult"):
                    raise
            await asyncio.sleep(_LONGEST_DELAY)


async def perform(
    database: Database, operation: Operation, handler: Handle, again: asyncio.Lock
) -> tuple[bytes, bool]:
    """Return the reply of a work, and whether it has events; see Store.perform.

    What has met a conflict goes on one after the other, by the lock `again`: a hundred at once that
    change the same document would stop each other for ever.
    """
    turn: AbstractAsyncContextManager[None] = nullcontext()
    delay = _FIRST_DELAY
    while True:
        async with turn, database.client.start_session() as session:
            work = MongoUnitOfWork(database, session, operation)
            try:
                return await work.run(handler, begin_immediately=operation.begin_immediately), bool(
                    work.events
                )
            except PyMongoError as error:
                if not error.has_error_label("TransientTransactionError"):
                    raise
        await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
        delay, turn = min(2 * delay, _LONGEST_DELAY), again


async def forward(database: Database, publish: Publish) -> int:
    """See Store.forward. What a worker claims is its own for a while, then anyone's again."""
    inbox = database.get_collection("inbox", write_concern=WriteConcern(1))
    now = datetime.now(UTC)
    free = inbox.find({"until": {"$lt": now}}, {"_id": 1}).sort(_WAITING).limit(_BATCH)
    found = {"_id": {"$in": [each["_id"] for each in await free.to_list()]}}
    committed = inbox.with_options(read_concern=ReadConcern("majority"))  # what can't vanish again
    wanted = [each["_id"] for each in await committed.find(found, {"_id": 1}).to_list()]
    if not wanted:
        return 0
    claim = secrets.token_hex(8)
    claimed = {"$set": {"claim": claim, "until": now + _LEASE}}
    await inbox.update_many({"_id": {"$in": wanted}, "until": {"$lt": now}}, claimed)
    mine = {"_id": {"$in": wanted}, "claim": claim}
    all_done = False
    try:
        ours = await inbox.find(mine, {"events": 1}).sort("event_id").to_list()
        entries = _some(ours)
        events = [decode(Event, event) for entry in entries for event in entry["events"]]
        done, failure = await publish_all(publish, events)
        there = set(done)
        await _leave(inbox, entries, iter([event.id in there for event in events]))
        if failure is not None:
            raise failure
        all_done = len(entries) == len(ours)
    finally:
        if not all_done:  # what is left is anyone's
            await inbox.update_many(mine, {"$set": {"until": _LONG_AGO}})
    return len(done)


def _some(entries: list[Document]) -> list[Document]:
    """Return the first entries, with as many events as are handed over at once."""
    before = accumulate((len(entry["events"]) for entry in entries), initial=0)
    return [entry for entry, count in zip(entries, before, strict=False) if count < _BATCH]


async def _leave(
    inbox: AsyncCollection[Document], entries: list[Document], done: Iterator[bool]
) -> None:
    """Forget events that are `done`, told in order; what has none left is kept for its time."""
    sent = []
    for entry in entries:
        left = [event for event in entry["events"] if not next(done)]
        if not left:
            sent.append(entry["_id"])
        elif len(left) < len(entry["events"]):
            await inbox.update_one({"_id": entry["_id"]}, {"$set": {"events": left}})
    waiting = dict.fromkeys(("events", "until", "event_id", "claim"), "")
    change = {"$set": {"done_at": datetime.now(UTC)}, "$unset": waiting}
    await inbox.update_many({"_id": {"$in": sent}}, change)


@contextmanager
def driver_errors(unconnected: int = Outcome.NO_EFFECT) -> Iterator[None]:
    """Turn what the driver raises into ServiceError; leave conflicts of transactions to `perform`.

    `unconnected` is what is known of the effect where no server was found.
    """
    try:
        yield
    except DuplicateKeyError as error:
        raise ServiceError(Code.ALREADY_EXISTS, "ALREADY_EXISTS", "It exists already.") from error
    except ServerSelectionTimeoutError as error:
        raise database_unavailable(unconnected) from error
    except WaitQueueTimeoutError as error:
        raise database_busy() from error
    except ConnectionFailure as error:
        raise database_unavailable(Outcome.UNKNOWN) from error
