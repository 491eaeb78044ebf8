"""Typed MongoDB collections: ODMantic models over pymongo's asyncio driver.

ODMantic's own engine needs motor, which is deprecated and runs each call in a thread: half the
throughput. ODMantic's models and query expressions work without its engine.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from odmantic import Model
from odmantic.query import QueryExpression
from pymongo import IndexModel, ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase

from shared.data.loader import Loader
from shared.data.mongo_documents import document_reader
from shared.outbox.mongo_errors import driver_errors
from shared.outbox.mongo_unit_of_work import session_of, unit_of_work_of

__all__ = ["Collection"]

M = TypeVar("M", bound=Model)
Other = TypeVar("Other", bound=Model)
Document = dict[str, Any]
_Joined = tuple[Document, list[Document]]


class Collection(Generic[M]):
    """The documents of one ODMantic model.

    Every method runs in the current unit of work, if there is one, and raises UNAVAILABLE with
    reason DATABASE_UNAVAILABLE if the database cannot be reached. Filters are query expressions
    (`eq(Post.id, id)`), never a client's dict.
    """

    def __init__(self, database: AsyncDatabase[Document], model: type[M]) -> None:
        self._database = database
        self._documents = database[model.__collection__]
        self._model = model
        self._read = document_reader(model)
        self._loader = Loader(self._fetch)
        self._join_loaders: dict[tuple[str, str], Loader[_Joined]] = {}

    async def insert(self, instance: M) -> None:
        """Insert a document; ALREADY_EXISTS if its id or a unique field is taken."""
        async with session_of(self._database) as session:
            await self._documents.insert_one(instance.model_dump_doc(), session=session)

    async def database_time(self) -> datetime:
        """Return the time of the database in a unit of work, as the last reply has brought it.

        A TTL index compares stored times with it: the clock of this process may be wrong by years.
        """
        async with session_of(self._database) as session:
            time = None if session is None else session.operation_time
        return datetime.now(UTC) if time is None else time.as_datetime()

    async def get(self, id_: str) -> M | None:
        """Return the document with this id, or None."""
        return (await self.get_many([id_])).get(id_)

    async def get_many(self, ids: Sequence[str]) -> dict[str, M]:
        """Return documents by id; an unknown id is missing from the result.

        Outside a unit of work, concurrent calls are batched into one query. The callers then share
        the lists in the documents: do not modify them.
        """
        if not ids:
            return {}
        fetch = self._fetch if unit_of_work_of(self._database) else self._loader.load
        return {id_: self._read(document) for id_, document in (await fetch(ids)).items()}

    async def get_joined(
        self, id_: str, field: str, other: "Collection[Other]"
    ) -> tuple[M | None, Other | None]:
        """Return the document with this id, and the document of `other` that its `field` refers to.

        Concurrent calls are batched as in `get_many`. Never part of a unit of work.
        """
        name = other._documents.name
        loader = self._join_loaders.get((field, name))
        if loader is None:
            loader = Loader(lambda ids: self._join(ids, field, name))
            self._join_loaders[field, name] = loader
        joined = (await loader.load([id_])).get(id_)
        if joined is None:
            return None, None
        document, referenced = joined
        return self._read(document), other._read(referenced[0]) if referenced else None

    async def _join(self, ids: Sequence[str], field: str, name: str) -> dict[str, _Joined]:
        lookup = {"from": name, "localField": field, "foreignField": "_id", "as": "joined"}
        found = await self.aggregate([{"$match": {"_id": {"$in": ids}}}, {"$lookup": lookup}])
        return {document["_id"]: (document, document.pop("joined")) for document in found}

    async def _fetch(self, ids: Sequence[str]) -> dict[str, Document]:
        async with session_of(self._database) as session:
            found = self._documents.find({"_id": {"$in": ids}}, session=session)
            return {document["_id"]: document for document in await found.to_list()}

    async def find_one(self, query: QueryExpression) -> M | None:
        """Return one document that matches, or None."""
        async with session_of(self._database) as session:
            document = await self._documents.find_one(query, session=session)
        return None if document is None else self._read(document)

    async def find(
        self,
        *queries: QueryExpression,
        sort: list[tuple[str, int]],
        limit: int,
        skip: int = 0,
        without: Sequence[str] = (),
        hint: list[tuple[str, int]] | None = None,
    ) -> list[M]:
        """Return up to `limit` documents that match every query, in the order of `sort`.

        The first `skip` documents are left out. The fields in `without` are not read: an instance
        has their default, or no such attribute. `hint` holds the keys of the index to use.
        """
        projection = dict.fromkeys(without, 0) or None
        async with session_of(self._database) as session:
            cursor = self._documents.find(
                _all_of(queries), projection, sort=sort, skip=skip, hint=hint, session=session
            )
            documents = await cursor.limit(limit).to_list()
        return self.read(documents)

    async def aggregate(self, pipeline: list[Document]) -> list[Document]:
        """Return the documents of an aggregation; `pipeline` must not contain a client's dict."""
        async with session_of(self._database) as session:
            return await (await self._documents.aggregate(pipeline, session=session)).to_list()

    def read(self, documents: Iterable[Document]) -> list[M]:
        """Return stored documents as instances of the model."""
        return [self._read(document) for document in documents]

    async def count(
        self,
        *queries: QueryExpression,
        limit: int | None = None,
        hint: list[tuple[str, int]] | None = None,
    ) -> int:
        """Count the documents that match every query, up to `limit`; `hint` as in `find`."""
        options = {"limit": limit, "hint": hint}
        given = {name: value for name, value in options.items() if value is not None}
        async with session_of(self._database) as session:
            return await self._documents.count_documents(_all_of(queries), session=session, **given)

    async def count_at_most(self, most: int, *queries: QueryExpression) -> int | None:
        """Count the documents that match every query; None if there are more than `most`."""
        count = await self.count(*queries, limit=most + 1)
        return count if count <= most else None

    async def update_one(self, query: QueryExpression, changes: Document) -> M | None:
        """Apply update operators to one document that matches; return it after the update."""
        async with session_of(self._database) as session:
            document = await self._documents.find_one_and_update(
                query, changes, return_document=ReturnDocument.AFTER, session=session
            )
        return None if document is None else self._read(document)

    async def update_many(self, query: QueryExpression, changes: Document) -> None:
        """Apply update operators to all documents that match."""
        async with session_of(self._database) as session:
            await self._documents.update_many(query, changes, session=session)

    async def put(self, instance: M) -> None:
        """Insert a document, or replace the document with the same id."""
        document = instance.model_dump_doc()
        async with session_of(self._database) as session:
            await self._documents.replace_one(
                {"_id": document["_id"]}, document, upsert=True, session=session
            )

    async def delete_one(self, query: QueryExpression) -> bool:
        """Delete one document that matches; return whether there was one."""
        async with session_of(self._database) as session:
            return (await self._documents.delete_one(query, session=session)).deleted_count == 1

    async def delete_many(self, query: QueryExpression) -> int:
        """Delete all documents that match; return their number."""
        async with session_of(self._database) as session:
            return (await self._documents.delete_many(query, session=session)).deleted_count

    async def delete_batch(self, query: QueryExpression, limit: int) -> list[M]:
        """Delete up to `limit` documents that match, in the order of their ids; return them."""
        batch = await self.find(query, sort=[("_id", 1)], limit=limit)
        ids = [getattr(document, self._model.__primary_field__) for document in batch]
        await self.delete_many(QueryExpression({"_id": {"$in": ids}}))
        return batch

    async def create_indexes(self) -> None:
        """Create the indexes that the model declares."""
        indexes = [
            index if isinstance(index, IndexModel) else index.get_pymongo_index()
            for index in self._model.__indexes__()
        ]
        if indexes:  # MongoDB refuses an empty list
            with driver_errors():
                await self._documents.create_indexes(indexes)


def _all_of(queries: Sequence[QueryExpression]) -> Document:
    return {"$and": [dict(query) for query in queries]} if queries else {}
