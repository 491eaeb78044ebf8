"""What tests share: real servers, a place of their own on them, keys and tokens.

`just test` gives the servers' addresses in the environment. Every run makes its own virtual host
and databases, named after itself, and removes them at the end: runs never meet.
"""

import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
import httpx
import pytest
from pymongo import AsyncMongoClient

from shared.identity import TokenVerifier
from tests.system import System, run_system
from tests.tokens import TokenMaker


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """This run's own part of each server."""

    amqp_url: str
    postgres_url: str
    mongo_url: str

    def as_environment(self) -> dict[str, str]:
        """The settings of the services."""
        return {
            "POSTBUS_AMQP_URL": self.amqp_url,
            "POSTBUS_POSTGRES_URL": self.postgres_url,
            "POSTBUS_MONGO_URL": self.mongo_url,
        }


def _server(name: str) -> str:
    url = os.environ.get(f"POSTBUS_{name}_URL")
    if not url:
        pytest.fail(f"POSTBUS_{name}_URL is not set: run the tests with ./just test")
    return url


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --long."""
    parser.addoption("--long", action="store_true", help="run the long suites as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long suites out, unless --long or a path asks for them."""
    by_path = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    if by_path or config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(scope="session")
def run_id() -> str:
    """Name of this run on all servers."""
    return f"test_{secrets.token_hex(6)}"


@asynccontextmanager
async def new_vhost(name: str) -> AsyncIterator[str]:
    """Make a RabbitMQ virtual host, give its URL, and remove it at the end."""
    broker = httpx.URL(_server("AMQP"))
    async with httpx.AsyncClient(base_url=_server("AMQP_MANAGEMENT")) as management:
        (await management.put(f"/api/vhosts/{name}")).raise_for_status()
        permissions = {"configure": ".*", "write": ".*", "read": ".*"}
        user = f"/api/permissions/{name}/{broker.username}"
        (await management.put(user, json=permissions)).raise_for_status()
        yield str(broker.copy_with(path=f"/{name}"))
        await management.delete(f"/api/vhosts/{name}")


@pytest.fixture(scope="session")
async def vhost(run_id: str) -> AsyncIterator[str]:
    """URL of a RabbitMQ virtual host of this run."""
    async with new_vhost(run_id) as url:
        yield url


@pytest.fixture(scope="session")
async def postgres_url(run_id: str) -> AsyncIterator[str]:
    """URL of a PostgreSQL database that is not there yet; removed with those that begin alike."""
    server = _server("POSTGRES")
    yield str(httpx.URL(server).copy_with(path=f"/{run_id}"))
    connection = await asyncpg.connect(server)
    ours = "SELECT datname FROM pg_database WHERE starts_with(datname, $1)"
    for (name,) in await connection.fetch(ours, run_id):
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


@pytest.fixture(scope="session")
async def mongo_url(run_id: str) -> AsyncIterator[str]:
    """URL of a MongoDB database that is not there yet; removed with those that begin alike."""
    server = httpx.URL(_server("MONGO"))
    yield str(server.copy_with(path=f"/{run_id}"))
    async with AsyncMongoClient[dict[str, object]](str(server)) as client:
        for name in await client.list_database_names():
            if name.startswith(run_id):
                await client.drop_database(name)


@pytest.fixture(scope="session")
def place(vhost: str, postgres_url: str, mongo_url: str) -> Place:
    """All of it."""
    return Place(amqp_url=vhost, postgres_url=postgres_url, mongo_url=mongo_url)


@pytest.fixture(scope="session")
def tokens() -> TokenMaker:
    """Signs access tokens that the services of this run accept."""
    return TokenMaker()


@pytest.fixture(scope="session")
def verifier(tokens: TokenMaker) -> TokenVerifier:
    """Accepts the tokens of `tokens`."""
    return TokenVerifier(tokens.key_set)


@pytest.fixture(scope="session")
async def system(
    place: Place, tokens: TokenMaker, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """The whole system, running; tests that stop a part start it again."""
    logs = tmp_path_factory.mktemp("logs")
    async with run_system(place.as_environment(), tokens, logs) as running:
        yield running


@pytest.fixture
async def client(system: System) -> AsyncIterator[httpx.AsyncClient]:
    """A REST client of the running system."""
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as opened:
        yield opened


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Makes names that no other test uses."""
    return lambda prefix: f"{prefix}{secrets.token_hex(5)}"
