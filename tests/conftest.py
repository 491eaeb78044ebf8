"""Shared fixtures: real servers with databases of this run, keys and tokens.

`just test` gives the servers' addresses in the environment. Every run creates its own virtual
host and databases, named after itself, and removes them at the end: runs do not interfere.
"""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex

import asyncpg
import httpx
import pytest
from pymongo import AsyncMongoClient

from postbus.registry import Method
from shared.access_tokens import TokenVerifier
from shared.bus.amqp.broker_addresses import broker_addresses
from shared.bus.declared_reasons import DeclaredReasons
from shared.errors import ServiceError
from tests.system import System, run_system
from tests.tokens import TokenMaker
from tools.accounts.rights import OPERATOR
from tools.accounts.set_up import set_up_broker_accounts
from tools.paths import SECRETS
from tools.secrets import Secrets
from tools.servers.addresses import service_url
from tools.servers.signals import interrupt_on_sigterm


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The virtual host and the databases of this run."""

    amqp_url: str
    postgres_url: str
    mongo_url: str

    def as_environment(self) -> dict[str, str]:
        """Return the settings of the services."""
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


def pytest_configure() -> None:
    """Let SIGTERM end the run as Ctrl-C does: with the fixtures, which end their processes."""
    interrupt_on_sigterm()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --long."""
    parser.addoption("--long", action="store_true", help="run the long suites as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long suites out, unless --long or their path is given."""
    by_path = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    if by_path or config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(autouse=True)
def undeclared_reasons(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fail a test in which a method answers with a reason that the contract does not name for it.

    A test that expects it empties the list. The logs of worker processes are searched by
    `run_system`.
    """
    reported: list[str] = []
    original = DeclaredReasons.report

    def report(self: DeclaredReasons, method: Method, error: ServiceError) -> None:
        reported.append(f"{method.name}: {error.code.name} {error.reason}")
        original(self, method, error)

    monkeypatch.setattr(DeclaredReasons, "report", report)
    yield reported
    assert reported == []


@pytest.fixture(scope="session")
def run_id() -> str:
    """Return the name of this run on all servers."""
    return f"test_{token_hex(6)}"


@pytest.fixture(scope="session")
def amqp_management_url() -> str:
    """Return the URL of RabbitMQ's management API, with an administrator's account."""
    return _server("AMQP_MANAGEMENT")


@asynccontextmanager
async def new_vhost(name: str) -> AsyncIterator[str]:
    """Create a RabbitMQ virtual host with the accounts of the services; delete it at the end.

    Yield its URL with the account of the operator, which has all rights and may name any service as
    the sender of a message.
    """
    broker = httpx.URL(str(broker_addresses(_server("AMQP"))[0]))
    async with httpx.AsyncClient(base_url=_server("AMQP_MANAGEMENT")) as management:
        (await management.put(f"/api/vhosts/{name}")).raise_for_status()
        permissions = {"configure": ".*", "write": ".*", "read": ".*"}
        user = f"/api/permissions/{name}/{broker.username}"
        (await management.put(user, json=permissions)).raise_for_status()
        secrets = Secrets.load_or_create(SECRETS)
        await asyncio.to_thread(
            set_up_broker_accounts, _server("AMQP_MANAGEMENT"), name, secrets.accounts
        )
        url = str(broker.copy_with(path=f"/{name}"))
        try:
            yield service_url(url, "rabbitmq", OPERATOR, secrets)
        finally:
            await management.delete(f"/api/vhosts/{name}")


@pytest.fixture(scope="session")
async def vhost(run_id: str) -> AsyncIterator[str]:
    """Return the URL of a RabbitMQ virtual host of this run."""
    async with new_vhost(run_id) as url:
        yield url


@asynccontextmanager
async def new_postgres_database(run_id: str) -> AsyncIterator[str]:
    """Yield the URL of a PostgreSQL database; it is deleted with its namesakes."""
    server = _server("POSTGRES")
    try:
        yield str(httpx.URL(server).copy_with(path=f"/{run_id}"))
    finally:
        connection = await asyncpg.connect(server)
        ours = "SELECT datname FROM pg_database WHERE starts_with(datname, $1)"
        for (name,) in await connection.fetch(ours, run_id):
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()


@pytest.fixture(scope="session")
async def postgres_url(run_id: str) -> AsyncIterator[str]:
    """Return the URL of a new PostgreSQL database."""
    async with new_postgres_database(run_id) as url:
        yield url


@asynccontextmanager
async def new_mongo_database(run_id: str) -> AsyncIterator[str]:
    """Yield the URL of a MongoDB database; it is deleted with its namesakes."""
    server = httpx.URL(_server("MONGO"))
    try:
        yield str(server.copy_with(path=f"/{run_id}"))
    finally:
        async with AsyncMongoClient[dict[str, object]](str(server)) as client:
            for name in await client.list_database_names():
                if name.startswith(run_id):
                    await client.drop_database(name)
                    await client[name].command("dropAllUsersFromDatabase")


@pytest.fixture(scope="session")
async def mongo_url(run_id: str) -> AsyncIterator[str]:
    """Return the URL of a new MongoDB database."""
    async with new_mongo_database(run_id) as url:
        yield url


@pytest.fixture(scope="session")
def place(vhost: str, postgres_url: str, mongo_url: str) -> Place:
    """Return the servers of this run."""
    return Place(amqp_url=vhost, postgres_url=postgres_url, mongo_url=mongo_url)


@pytest.fixture(scope="session")
def tokens() -> TokenMaker:
    """Return a signer of access tokens that the services of this run accept."""
    return TokenMaker()


@pytest.fixture(scope="session")
def verifier(tokens: TokenMaker) -> TokenVerifier:
    """Return a verifier of the tokens of `tokens`."""
    return TokenVerifier(tokens.key_set)


@pytest.fixture(scope="session")
async def system(
    place: Place, tokens: TokenMaker, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """Return the running system; a test that stops a service starts it again."""
    logs = tmp_path_factory.mktemp("logs")
    async with run_system(place.as_environment(), tokens, logs) as running:
        yield running


@pytest.fixture
async def client(system: System) -> AsyncIterator[httpx.AsyncClient]:
    """Return a REST client of the running system."""
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as opened:
        yield opened


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Return a function that makes unique names."""
    return lambda prefix: f"{prefix}{token_hex(5)}"


@pytest.fixture(scope="module")
def frozen_heap() -> Iterator[None]:
    """Exclude the objects of earlier tests from garbage collections, which take CPU time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
