"""Documents by id, of a real database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import httpx
import pytest
from odmantic import Field, Model
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener

from shared.data.mongo_collection import Collection
from shared.data.mongo_database import Mongo
from shared.outbox.unit_of_work import Operation

Unique = Callable[[str], str]


class Shelf(Model):
    """Where books stand."""

    model_config: ClassVar = {"collection": "shelves"}
    id: str = Field(primary_field=True)
    room: str


class Book(Model):
    """A book on a shelf."""

    model_config: ClassVar = {"collection": "books"}
    id: str = Field(primary_field=True)
    shelf_id: str
    title: str = "Untitled"


class Heard(CommandListener):
    """The names of the commands that a server was given."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def started(self, event: Any) -> None:
        self.commands.append(event.command_name)

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def mongo(mongo_url: str, unique: Unique, heard: Heard) -> AsyncIterator[Mongo]:
    """A database of its own, with two books on one shelf and one on none."""
    url = httpx.URL(mongo_url)
    own = str(url.copy_with(path=unique(f"{url.path}_")))
    async with AsyncMongoClient[dict[str, Any]](own, event_listeners=[heard]) as client:
        opened = Mongo(client.get_default_database())
        await opened.collection(Shelf).insert(Shelf(id="s", room="attic"))
        for id_, shelf_id in (("a", "s"), ("b", "s"), ("c", "gone")):
            await opened.collection(Book).insert(Book(id=id_, shelf_id=shelf_id))
        heard.commands.clear()
        yield opened
        await client.drop_database(client.get_default_database())


@pytest.fixture
def books(mongo: Mongo) -> Collection[Book]:
    return mongo.collection(Book)


async def test_reads_of_one_moment_are_one_question(books: Collection[Book], heard: Heard) -> None:
    found = await asyncio.gather(books.get("a"), books.get("x"), books.get_many(["a", "b"]))

    assert list(found) == [
        Book(id="a", shelf_id="s"),
        None,
        {id_: Book(id=id_, shelf_id="s") for id_ in ("a", "b")},
    ]
    assert heard.commands == ["find"]


async def test_documents_come_with_those_that_they_name(
    mongo: Mongo, books: Collection[Book], heard: Heard
) -> None:
    shelves = mongo.collection(Shelf)
    shelf = Shelf(id="s", room="attic")

    found = await asyncio.gather(
        *(books.get_with(id_, "shelf_id", shelves) for id_ in ("a", "a", "b", "c", "x"))
    )

    assert list(found) == [
        (Book(id="a", shelf_id="s"), shelf),
        (Book(id="a", shelf_id="s"), shelf),
        (Book(id="b", shelf_id="s"), shelf),
        (Book(id="c", shelf_id="gone"), None),
        (None, None),
    ]
    assert heard.commands == ["aggregate"]


async def test_what_one_reader_changes_another_does_not_see(books: Collection[Book]) -> None:
    one, other = await asyncio.gather(books.get("a"), books.get("a"))
    assert one is not None

    one.title = "Changed"

    assert other is not None
    assert other.title == "Untitled"


async def test_work_reads_what_it_has_written_and_others_do_not(
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
