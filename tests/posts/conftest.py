"""Users of the running system, and the database of `posts`."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from tests.people import Client, Person, sign_up
from tests.system import System

Unique = Callable[[str], str]


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
async def database(system: System) -> AsyncIterator[AsyncDatabase[dict[str, Any]]]:
    """The database of `posts`."""
    url = system.databases("posts")["POSTBUS_MONGO_URL"]
    async with AsyncMongoClient[dict[str, Any]](url) as client:
        yield client.get_default_database()
