"""Users of the running system, the database of `posts`, and one for its repositories."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from posts.models import create_indexes
from shared.data.mongo_database import Mongo
from tests.people import Client, Person, sign_up
from tests.posts.sent_commands import SentCommands
from tests.system import System

Unique = Callable[[str], str]
Document = dict[str, Any]


@pytest.fixture
async def alice(client: httpx.AsyncClient, unique: Unique) -> Person:
    return await sign_up(client, unique("alice"))


@pytest.fixture
async def bob(client: httpx.AsyncClient, unique: Unique) -> Person:
    return await sign_up(client, unique("bob"))


@pytest.fixture
def as_alice(client: httpx.AsyncClient, alice: Person) -> Client:
    return Client(client, alice)


@pytest.fixture
def as_bob(client: httpx.AsyncClient, bob: Person) -> Client:
    return Client(client, bob)


@pytest.fixture
def as_anonymous(client: httpx.AsyncClient) -> Client:
    return Client(client)


@pytest.fixture
async def database(system: System) -> AsyncIterator[AsyncDatabase[Document]]:
    """The database of `posts`."""
    url = system.databases("posts")["POSTBUS_MONGO_URL"]
    async with AsyncMongoClient[Document](url) as client:
        yield client.get_default_database()


@pytest.fixture(scope="session")
async def repositories_url(mongo_url: str) -> str:
    """The URL of a database with the indexes of `posts`, for tests without the running system."""
    url = httpx.URL(mongo_url)
    own = str(url.copy_with(path=f"{url.path}_repositories"))
    async with AsyncMongoClient[Document](own) as client:
        await create_indexes(Mongo(client.get_default_database()))
    return own


@pytest.fixture
def sent() -> SentCommands:
    """The commands that the test sends to the database of `mongo`."""
    return SentCommands()


@pytest.fixture
async def mongo(repositories_url: str, sent: SentCommands) -> AsyncIterator[Mongo]:
    """A database with indexes and without documents."""
    async with AsyncMongoClient[Document](repositories_url, event_listeners=[sent]) as client:
        opened = client.get_default_database()
        for name in await opened.list_collection_names():
            await opened[name].delete_many({})
        sent.take()
        yield Mongo(opened)
