"""People who write, of the running system."""

from collections.abc import Callable

import httpx
import pytest

from tests.people import Client, Person, sign_up

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
def as_nobody(client: httpx.AsyncClient) -> Client:
    return Client(client)
