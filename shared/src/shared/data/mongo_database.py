"""MongoDB for a service: one database, its collections and its units of work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from odmantic import Model
from pydantic import SecretStr
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.write_concern import WriteConcern

from shared.data.mongo_collection import Collection
from shared.outbox.mongo_outbox import create_work_indexes, driver_errors, forward, perform
from shared.outbox.unit_of_work import Handle, Operation, Publish

__all__ = ["Mongo", "open_mongo"]

M = TypeVar("M", bound=Model)
Document = dict[str, Any]

_SELECT_TIMEOUT_MS: Final = 400
"""Answers within a second while the server is away: the driver tries twice."""
_CONNECT_TIMEOUT_MS: Final = 2000
_POOL_TIMEOUT_MS: Final = 2000
"""How long a call waits for a free connection, before it fails with DATABASE_BUSY."""


class Mongo:
    """One database, and a Store of works. Safe for concurrent use."""

    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self.committed = asyncio.Event()
        self._again = asyncio.Lock()
        self._database = database

    def collection(self, model: type[M]) -> Collection[M]:
        """Return the collection of `model`."""
        return Collection(self._database, model)

    @property
    def database(self) -> AsyncDatabase[Document]:
        """The database itself, for migrations."""
        return self._database

    async def ping(self) -> None:
        """Return if the database answers; raise if not."""
        await self._database.command("ping")

    async def perform(self, operation: Operation, handler: Handle) -> bytes:
        """See Store.perform. Transactions that conflict are run again, until the deadline."""
        reply, published = await perform(self._database, operation, handler, self._again)
        if published:
            self.committed.set()
        return reply

    async def forward(self, publish: Publish) -> int:
        """See Store.forward."""
        with driver_errors():
            return await forward(self._database, publish)

    async def purge(self) -> None:
        """See Store.purge: MongoDB does it by an index on the time."""

    async def create_indexes(self) -> None:
        """Create what units of work need."""
        with driver_errors():
            await create_work_indexes(self._database)


@asynccontextmanager
async def open_mongo(url: SecretStr) -> AsyncIterator[Mongo]:
    """Open a client of `url`, which names the database, and close it at the end.

    Connects at first use, so that the database may come later. Writes are acknowledged by the
    majority, journaled.
    """
    client: AsyncMongoClient[Document] = AsyncMongoClient(
        url.get_secret_value(),
        serverSelectionTimeoutMS=_SELECT_TIMEOUT_MS,
        connectTimeoutMS=_CONNECT_TIMEOUT_MS,
        waitQueueTimeoutMS=_POOL_TIMEOUT_MS,
        tz_aware=True,
    )
    try:
        database = client.get_default_database()
        yield Mongo(database.with_options(write_concern=WriteConcern("majority", j=True)))
    finally:
        await client.close()
