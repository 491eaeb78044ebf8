"""Typed collections on a real database: reads by id, joins and units of work."""

import asyncio
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from typing import Any, ClassVar

import httpx
import pytest
from odmantic import Field, Index, Model
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener

from shared.data.mongo_collection import Collection
from shared.data.mongo_database import Mongo
from shared.errors import Code, ServiceError
from shared.outbox.inbox import Operation

Unique = Callable[[str], str]


class Shelf(Model):
    """A shelf of books."""

    model_config: ClassVar = {"collection": "shelves"}
    id: str = Field(primary_field=True)
    room: str


class Book(Model):
    """A book on a shelf."""

    model_config: ClassVar = {"collection": "books"}
    id: str = Field(primary_field=True)
    shelf_id: str
    title: str = "Untitled"


class SentCommands(CommandListener):
    """Records the names of the commands that are sent to a server."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def started(self, event: Any) -> None:
        self.commands.append(event.command_name)

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


@pytest.fixture
def sent() -> SentCommands:
    return SentCommands()


@pytest.fixture
async def mongo(mongo_url: str, unique: Unique, sent: SentCommands) -> AsyncIterator[Mongo]:
    """A new database with two books on one shelf, and one book without a shelf."""
    url = httpx.URL(mongo_url)
    own = str(url.copy_with(path=unique(f"{url.path}_")))
    async with AsyncMongoClient[dict[str, Any]](own, event_listeners=[sent]) as client:
        opened = Mongo(client.get_default_database())
        await opened.collection(Shelf).insert(Shelf(id="s", room="attic"))
        for id_, shelf_id in (("a", "s"), ("b", "s"), ("c", "gone")):
            await opened.collection(Book).insert(Book(id=id_, shelf_id=shelf_id))
        sent.commands.clear()
        yield opened
        await client.drop_database(client.get_default_database())


@pytest.fixture
def books(mongo: Mongo) -> Collection[Book]:
    return mongo.collection(Book)


async def test_concurrent_reads_are_one_query(books: Collection[Book], sent: SentCommands) -> None:
    found = await asyncio.gather(books.get("a"), books.get("x"), books.get_many(["a", "b"]))

    assert list(found) == [
        Book(id="a", shelf_id="s"),
        None,
        {id_: Book(id=id_, shelf_id="s") for id_ in ("a", "b")},
    ]
    assert sent.commands == ["find"]


async def test_documents_are_joined_with_referenced_documents(
    mongo: Mongo, books: Collection[Book], sent: SentCommands
) -> None:
    shelves = mongo.collection(Shelf)
    shelf = Shelf(id="s", room="attic")

    found = await asyncio.gather(
        *(books.get_joined(id_, "shelf_id", shelves) for id_ in ("a", "a", "b", "c", "x"))
    )

    assert list(found) == [
        (Book(id="a", shelf_id="s"), shelf),
        (Book(id="a", shelf_id="s"), shelf),
        (Book(id="b", shelf_id="s"), shelf),
        (Book(id="c", shelf_id="gone"), None),
        (None, None),
    ]
    assert sent.commands == ["aggregate"]


async def test_changes_to_a_read_document_stay_with_its_reader(books: Collection[Book]) -> None:
    one, other = await asyncio.gather(books.get("a"), books.get("a"))
    assert one is not None

    one.title = "Changed"

    assert other is not None
    assert other.title == "Untitled"


class Binding(StrEnum):
    """A type that MongoDB does not have."""

    HARD = "hard"


class BoundBook(Model):
    """A book that stores its binding as a string."""

    model_config: ClassVar = {"collection": "books"}
    id: str = Field(primary_field=True)
    binding: Binding
    owner: str = Field(key_name="owned_by")


class RecentBook(Model):
    """A book with fields that older documents lack."""

    model_config: ClassVar = {"collection": "books"}
    id: str = Field(primary_field=True)
    shelf_id: str
    authors: list[str] = []  # noqa: RUF012  # Pydantic copies defaults
    year: int | None = None


async def test_read_document_equals_the_inserted_instance(mongo: Mongo) -> None:
    bound, recent = mongo.collection(BoundBook), mongo.collection(RecentBook)
    hard = BoundBook(id="hard", binding=Binding.HARD, owner="ann")
    new = RecentBook(id="new", shelf_id="s", authors=["Bea"], year=2026)
    await bound.insert(hard)
    await recent.insert(new)

    assert await bound.get("hard") == hard
    assert await recent.get("new") == new


async def test_missing_fields_have_defaults_that_no_documents_share(mongo: Mongo) -> None:
    recent = mongo.collection(RecentBook)

    one, other = await asyncio.gather(recent.get("a"), recent.get("b"))
    assert one is not None
    assert other is not None
    one.authors.append("Bea")
    one.year = 2026

    assert other == RecentBook(id="b", shelf_id="s", authors=[], year=None)
    await recent.put(one)
    assert await recent.get("a") == RecentBook(id="a", shelf_id="s", authors=["Bea"], year=2026)


async def test_indexes_of_all_models_are_created(mongo: Mongo) -> None:
    class Loan(Model):
        model_config: ClassVar = {
            "collection": "loans",
            "indexes": lambda: [Index(Loan.reader)],
        }
        id: str = Field(primary_field=True)
        reader: str

    await mongo.create_indexes(Shelf, Loan)

    indexes = [await mongo.database[name].index_information() for name in ("inbox", "loans")]
    assert {"done_at_1", "until_1_event_id_1"} <= indexes[0].keys()
    assert "reader_1" in indexes[1]


async def test_uncommitted_documents_are_visible_only_inside_the_unit_of_work(
    mongo: Mongo, books: Collection[Book]
) -> None:
    written, read = asyncio.Event(), asyncio.Event()

    async def handler() -> bytes:
        await books.insert(Book(id="d", shelf_id="s"))
        assert await books.get("d") is not None
        written.set()
        await read.wait()
        return b""

    working = asyncio.create_task(mongo.perform(Operation(key="k", fingerprint=b"f"), handler))
    async with asyncio.timeout(5):
        await written.wait()
        assert await books.get("d") is None
        read.set()
        await working

    assert await books.get("d") is not None


async def test_document_with_an_id_that_is_taken_already_exists(books: Collection[Book]) -> None:
    with pytest.raises(ServiceError) as raised:
        await books.insert(Book(id="a", shelf_id="s"))

    assert (raised.value.code, raised.value.reason) == (Code.ALREADY_EXISTS, "ALREADY_EXISTS")


async def test_reads_in_a_unit_of_work_are_not_batched_with_others(
    mongo: Mongo, books: Collection[Book], sent: SentCommands
) -> None:
    async def handler() -> bytes:
        await asyncio.gather(books.get("a"), books.get("b"))
        return b""

    await mongo.perform(Operation(key="k", fingerprint=b"f"), handler)

    assert sent.commands.count("find") == 3  # one of the inbox
