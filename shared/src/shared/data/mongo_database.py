"""The MongoDB database of a service: its collections and its units of work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from odmantic import Model
from pydantic import SecretStr
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from shared.data.mongo_collection import Collection
from shared.data.mongo_counters import Counters
from shared.data.mongo_waits import make_cancellable
from shared.errors import NotReadyError
from shared.outbox.inbox import Operation, OperationResult
from shared.outbox.mongo_errors import driver_errors
from shared.outbox.mongo_inbox import create_inbox_indexes, erase_replies
from shared.outbox.mongo_outbox import forward
from shared.outbox.mongo_unit_of_work import perform
from shared.outbox.outbox import Publish
from shared.outbox.unit_of_work import Execution

__all__ = ["Mongo", "open_mongo"]

M = TypeVar("M", bound=Model)
Document = dict[str, Any]

_SELECT_TIMEOUT_MS: Final = 400
"""The driver tries twice, so a call fails within a second while the server is unavailable."""
_CONNECT_TIMEOUT_MS: Final = 2000
_POOL_TIMEOUT_MS: Final = 2000
"""The time that a call waits for a free connection before it fails with DATABASE_BUSY."""
_ROUTER: Final = "isdbgrid"
"""The `msg` of a mongos in the reply to `hello`."""


class Mongo:
    """One database; the Store of a service's units of work. Safe for concurrent use."""

    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self.committed = asyncio.Event()
        self._retry_lock = asyncio.Lock()
        self._database = database
        self.counters: Final = Counters(database)

    def collection(self, model: type[M]) -> Collection[M]:
        """Return the collection of `model`."""
        return Collection(self._database, model)

    @property
    def database(self) -> AsyncDatabase[Document]:
        """The driver's database, for migrations."""
        return self._database

    async def ping(self, version: int = 0) -> None:
        """Return if units of work are possible and the database has been migrated to `version`.

        Raises NotReadyError if this is not the primary of a replica set, or is not migrated;
        UNAVAILABLE if the database does not respond.
        """
        with driver_errors():
            state = await self._database.command("hello")
            if "setName" not in state and state.get("msg") != _ROUTER:
                raise NotReadyError(
                    "MongoDB needs a replica set, for transactions: start mongod with --replSet and"
                    " run rs.initiate()."
                )
            if not state.get("isWritablePrimary"):
                raise NotReadyError("MongoDB has no primary at this address.")
            query = {"_id": "version", "version": {"$gte": version}}
            if version and await self._database["migrations"].find_one(query) is None:
                raise NotReadyError("The database is not migrated. Run the command `migrate`.")

    async def perform(self, operation: Operation, execute: Execution) -> OperationResult:
        """See Store.perform. Transactions that conflict are retried until the deadline."""
        result, unit = await perform(
            self._database, operation, execute, retry_lock=self._retry_lock
        )
        if unit.events:
            self.committed.set()
        if unit.counted:
            await self.counters.fold(unit.counted)
        elif result.replayed:  # a process that was killed may not have folded
            await self.counters.fold(await self.counters.leftovers())
        return result

    async def forward(self, publish: Publish) -> int:
        """See Store.forward."""
        with driver_errors():
            return await forward(self._database, publish)

    async def purge(self) -> None:
        """See Store.purge. Nothing to do: a TTL index deletes old operations."""

    async def erase_replies(self, owner: str) -> bool:
        """See Store.erase_replies."""
        with driver_errors():
            return await erase_replies(self._database, owner)

    async def create_indexes(self, *models: type[Model]) -> None:
        """Create the indexes of the inbox, and the indexes that `models` declare.

        NotReadyError as in `ping`.
        """
        with driver_errors():
            await self.ping()
            await create_inbox_indexes(self._database)
            await self.counters.create_indexes()
        for model in models:
            await self.collection(model).create_indexes()


@asynccontextmanager
async def open_mongo(url: SecretStr) -> AsyncIterator[Mongo]:
    """Open a client for `url`, which contains the database name, and close it at the end.

    The client connects at first use, so the server need not be available yet. The address selects
    servers, user, TLS and pool. Whatever else it says, reads are sent to the primary, so that they
    include the caller's own writes, and writes are acknowledged by a majority of the replica set,
    journaled.
    """
    make_cancellable()
    client: AsyncMongoClient[Document] = AsyncMongoClient(
        url.get_secret_value(),
        retryReads=True,
        retryWrites=True,
        serverSelectionTimeoutMS=_SELECT_TIMEOUT_MS,
        connectTimeoutMS=_CONNECT_TIMEOUT_MS,
        waitQueueTimeoutMS=_POOL_TIMEOUT_MS,
        tz_aware=True,
    )
    try:
        database = client.get_default_database(
            read_concern=ReadConcern("local"),
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority", j=True),
        )
        yield Mongo(database)
    finally:
        await client.close()
