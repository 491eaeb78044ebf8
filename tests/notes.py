"""Notes that units of work store in PostgreSQL or MongoDB, and a broker that records events."""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar, Protocol

import asyncpg
import httpx
import sqlalchemy as sa
from bson import ObjectId
from odmantic import Field, Model
from odmantic.query import eq
from pydantic import SecretStr
from pymongo import AsyncMongoClient

from postbus.bus.v1 import Event
from postbus_runtime.reasons import Reason
from shared.data.mongo_database import Mongo, open_mongo
from shared.data.postgres_connections import create_engine
from shared.data.postgres_sessions import Postgres, open_postgres
from shared.errors import Code, ServiceError
from shared.outbox.inbox import Operation
from shared.outbox.outbox import EncodedEvent
from shared.outbox.postgres_tables import create_inbox_and_outbox
from shared.outbox.unit_of_work import Store, current_unit_of_work

__all__ = [
    "Broker",
    "Notes",
    "PostgresNotes",
    "an_operation",
    "mongo_notes",
    "postgres_notes",
    "publish",
]

Unique = Callable[[str], str]


class Broker:
    """Records published events, unless it is unavailable or refuses their ids."""

    def __init__(self) -> None:
        self.event_ids: list[str] = []
        self.unavailable = False
        self.refused: set[str] = set()
        self.failed = asyncio.Semaphore(0)
        """Released for each event that could not be published."""

    async def publish(self, event: EncodedEvent) -> None:
        if self.unavailable or event.id in self.refused:
            self.failed.release()
            reason = "NOT_CONNECTED" if self.unavailable else "EVENT_REFUSED"
            raise ServiceError(Reason(reason, Code.UNAVAILABLE), "Unavailable.")
        self.event_ids.append(event.id)


def an_operation(
    name: str, fingerprint: bytes = b"request", *, secret: bool = False, owner: str = ""
) -> Operation:
    """Return the operation of a call."""
    key = Operation.key_of("call", name)
    return Operation(key=key, fingerprint=fingerprint, secret=secret, owner=owner)


def publish(id_: str, type_: str = "postbus.test.v1.Noted", subject: str = "") -> None:
    """Add an event to the current unit of work."""
    unit = current_unit_of_work()
    assert unit is not None
    unit.events.append(Event(id=id_, type=type_, subject=subject, data=b"noted"))


class Notes(Protocol):
    """Notes in a database of a test."""

    store: Store

    @abstractmethod
    async def add(self, text: str) -> None:
        """Insert a note; notes have no key, so that a second effect would be counted."""

    @abstractmethod
    async def count(self, text: str) -> int:
        """Return the number of notes with this text."""


class PostgresNotes(Notes):
    def __init__(self, store: Postgres, url: str) -> None:
        self.store = self._postgres = store
        self.url = url

    async def add(self, text: str) -> None:
        async with self._postgres.transaction() as session:
            connection = await session.connection()
            await connection.execute(sa.text("INSERT INTO notes VALUES (:text)"), {"text": text})

    async def count(self, text: str) -> int:
        query = sa.text("SELECT count(*) FROM notes WHERE note = :text")
        async with self._postgres.transaction() as session:
            connection = await session.connection()
            return int((await connection.execute(query, {"text": text})).scalar_one())

    async def execute(self, *statements: str) -> None:
        """Execute statements on a connection of their own."""
        connection = await asyncpg.connect(self.url)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()


class Note(Model):
    """A note."""

    model_config: ClassVar = {"collection": "notes"}
    id: ObjectId = Field(primary_field=True)
    text: str


class MongoNotes(Notes):
    def __init__(self, store: Mongo) -> None:
        self.store = store
        self._notes = store.collection(Note)

    async def add(self, text: str) -> None:
        await self._notes.insert(Note(id=ObjectId(), text=text))

    async def count(self, text: str) -> int:
        return len(await self._notes.find(eq(Note.text, text), sort=[("_id", 1)], limit=1000))


@asynccontextmanager
async def postgres_notes(postgres_url: str, unique: Unique) -> AsyncIterator[PostgresNotes]:
    """Create a database at the server of `postgres_url`, and drop it at the end."""
    url = _database_url(postgres_url, unique)
    server, _, name = url.rpartition("/")
    connection = await asyncpg.connect(f"{server}/postgres")
    await connection.execute(f'CREATE DATABASE "{name}"')
    await connection.close()
    engine = create_engine(SecretStr(url))
    async with engine.begin() as opened:
        await opened.execute(sa.text("CREATE TABLE notes (note text)"))
        await opened.execute(sa.text("CREATE TABLE alembic_version (version_num text)"))
        await opened.run_sync(create_inbox_and_outbox)
    await engine.dispose()
    try:
        async with open_postgres(SecretStr(url)) as postgres:
            yield PostgresNotes(postgres, url)
    finally:
        connection = await asyncpg.connect(f"{server}/postgres")
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await connection.close()


@asynccontextmanager
async def mongo_notes(mongo_url: str, unique: Unique) -> AsyncIterator[Notes]:
    """Create a database at the server of `mongo_url`, and drop it at the end."""
    url = _database_url(mongo_url, unique)
    async with open_mongo(SecretStr(url)) as mongo:
        await mongo.create_indexes()
        yield MongoNotes(mongo)
    client: AsyncMongoClient[dict[str, object]]
    async with AsyncMongoClient(url) as client:
        await client.drop_database(client.get_default_database())


def _database_url(server: str, unique: Unique) -> str:
    url = httpx.URL(server)
    return str(url.copy_with(path=unique(f"{url.path}_")))
