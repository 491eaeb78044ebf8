"""MongoDB for a service: ODMantic models over pymongo's asyncio driver.

ODMantic's own engine needs motor, which is deprecated and runs each call in a thread: half the
throughput. Its models and query expressions work without it.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Generic, TypeVar

from odmantic import Model
from odmantic.query import QueryExpression
from pydantic import SecretStr
from pymongo import AsyncMongoClient, IndexModel, ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConnectionFailure, DuplicateKeyError, ServerSelectionTimeoutError
from pymongo.write_concern import WriteConcern

from shared.errors import Code, Outcome, ServiceError, database_away

__all__ = ["Collection", "Mongo", "open_mongo"]

M = TypeVar("M", bound=Model)
Document = dict[str, Any]

_SELECT_TIMEOUT_MS: Final = 400
"""Answers within a second while the server is away: the driver tries twice."""
_CONNECT_TIMEOUT_MS: Final = 2000


class Mongo:
    """One database. Safe for concurrent use."""

    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self._database = database

    def collection(self, model: type[M]) -> "Collection[M]":
        """Return the collection of `model`."""
        return Collection(self._database, model)

    async def ping(self) -> None:
        """Return if the database answers; raise if not."""
        await self._database.command("ping")


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
        tz_aware=True,
    )
    try:
        database = client.get_default_database()
        yield Mongo(database.with_options(write_concern=WriteConcern("majority", j=True)))
    finally:
        await client.close()


class Collection(Generic[M]):
    """The documents of one ODMantic model.

    Every method raises UNAVAILABLE with reason DATABASE_UNAVAILABLE if the database cannot be
    reached. Filters are query expressions (`eq(Post.id, id)`), never a client's dict.
    """

    def __init__(self, database: AsyncDatabase[Document], model: type[M]) -> None:
        self._documents = database[model.__collection__]
        self._model = model

    async def insert(self, instance: M) -> None:
        """Store a new document; ALREADY_EXISTS if its id or a unique field is taken."""
        with _translated():
            await self._documents.insert_one(instance.model_dump_doc())

    async def find_one(self, query: QueryExpression) -> M | None:
        """Return the document that matches, or None."""
        with _translated():
            document = await self._documents.find_one(query)
        return None if document is None else self._model.model_validate_doc(document)

    async def find(
        self, *queries: QueryExpression, sort: list[tuple[str, int]], limit: int
    ) -> list[M]:
        """Return up to `limit` documents that match every query, in the order of `sort`."""
        conditions: Document = {"$and": [dict(query) for query in queries]} if queries else {}
        with _translated():
            cursor = self._documents.find(conditions).sort(sort).limit(limit)
            documents = await cursor.to_list()
        return [self._model.model_validate_doc(document) for document in documents]

    async def update_one(self, query: QueryExpression, changes: Document) -> M | None:
        """Apply update operators to the document that matches; return it as it then is."""
        with _translated():
            document = await self._documents.find_one_and_update(
                query, changes, return_document=ReturnDocument.AFTER
            )
        return None if document is None else self._model.model_validate_doc(document)

    async def put(self, instance: M) -> None:
        """Store a document, replacing the one with its id if there is one."""
        document = instance.model_dump_doc()
        with _translated():
            await self._documents.replace_one({"_id": document["_id"]}, document, upsert=True)

    async def delete_one(self, query: QueryExpression) -> bool:
        """Delete the document that matches; False if there is none."""
        with _translated():
            return (await self._documents.delete_one(query)).deleted_count == 1

    async def create_indexes(self) -> None:
        """Create the indexes that the model declares, if any."""
        indexes = [
            index if isinstance(index, IndexModel) else index.get_pymongo_index()
            for index in self._model.__indexes__()
        ]
        if indexes:  # MongoDB refuses to create none
            with _translated():
                await self._documents.create_indexes(indexes)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DuplicateKeyError as error:
        raise ServiceError(Code.ALREADY_EXISTS, "ALREADY_EXISTS", "It exists already.") from error
    except ServerSelectionTimeoutError as error:
        raise database_away(Outcome.NO_EFFECT) from error
    except ConnectionFailure as error:
        raise database_away(Outcome.UNKNOWN) from error
