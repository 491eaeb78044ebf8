"""The worker `users` in the test process, on the in-memory bus and a database of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import betterproto
import httpx
import pytest
from pydantic import SecretStr

from postbus.registry import METHODS
from postbus.users.v1 import (
    LogInRequest,
    LogInResponse,
    RefreshSessionRequest,
    RefreshSessionResponse,
    SignUpRequest,
    SignUpResponse,
)
from shared.access_tokens import TokenVerifier
from shared.bus import Call
from shared.bus.memory import MemoryBus
from shared.data.alembic_migrations import migrate
from shared.errors import ServiceError
from shared.runtime.worker import serve
from shared.wire import decode, encode
from tests.people import PASSWORD
from tests.tokens import TokenMaker
from users.__main__ import application
from users.settings import UsersSettings

Unique = Callable[[str], str]
AUTH = "postbus.users.v1.AuthService"
MIGRATIONS = "users:migrations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A running worker, with a connection to its database."""

    bus: MemoryBus
    database: asyncpg.Connection

    async def call(self, method: str, request: betterproto.Message, **envelope: Any) -> Any:
        """Call a method; return its response or raise its ServiceError."""
        return decode(METHODS[method].response, await self.payload(method, request, **envelope))

    async def payload(self, method: str, request: betterproto.Message, **envelope: Any) -> bytes:
        call = Call.new(encode(request), budget=20, **envelope)
        return (await self.bus.call(method, call)).payload

    async def sign_up(self, username: str, **fields: str) -> SignUpResponse:
        account = {"email": f"{username}@example.com", "password": PASSWORD} | fields
        response: SignUpResponse = await self.call(
            f"{AUTH}.SignUp", SignUpRequest(username=username, **account)
        )
        return response

    async def log_in(
        self, login: str, password: str = PASSWORD, *, address: str = "", device_token: str = ""
    ) -> LogInResponse:
        request = LogInRequest(login=login, password=password, device_token=device_token)
        response: LogInResponse = await self.call(f"{AUTH}.LogIn", request, client_address=address)
        return response

    async def refresh(self, token: str, **envelope: str) -> RefreshSessionResponse:
        request = RefreshSessionRequest(refresh_token=token)
        response: RefreshSessionResponse = await self.call(
            f"{AUTH}.RefreshSession", request, **envelope
        )
        return response


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    database = await asyncpg.connect(url)
    try:
        yield database
    finally:
        await database.close()


async def until_waiting(url: str, number: int) -> None:
    """Wait until this number of sessions wait for a lock in the database."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with connected(url) as watcher, asyncio.timeout(10):
        while await watcher.fetchval(waiting) < number:  # noqa: ASYNC110  # nothing reports a wait
            await asyncio.sleep(0.01)


async def reason(call: Any) -> str:
    """Return the reason of the error of a call; empty if it succeeds."""
    try:
        await call
    except ServiceError as error:
        return error.reason
    return ""


@pytest.fixture
def url(postgres_url: str, unique: Unique) -> str:
    """Return the URL of a database that does not exist yet."""
    server = httpx.URL(postgres_url)
    return str(server.copy_with(path=unique(f"{server.path}_")))


async def migrated(url: str, back_to: str | None = None) -> str:
    """Migrate a database to the newest revision, or back to an older one; return its URL."""
    await asyncio.to_thread(migrate, SecretStr(url), MIGRATIONS, back_to=back_to)
    return url


@pytest.fixture(scope="session")
async def worker_database(postgres_url: str) -> str:
    """Create the database that all tests of the worker share, and return its URL."""
    server = httpx.URL(postgres_url)
    return await migrated(str(server.copy_with(path=f"{server.path}_worker")))


@pytest.fixture
def settings(
    worker_database: str, tokens: TokenMaker, request: pytest.FixtureRequest
) -> UsersSettings:
    """Return the settings of the worker; the parameter of a test has further ones."""
    return UsersSettings(
        amqp_url=SecretStr("amqp://u:p@nowhere"),
        verification_keys=tokens.key_set,
        postgres_url=SecretStr(worker_database),
        page_token_key=SecretStr("of the tests alone"),
        signing_key=SecretStr(tokens.signing_key),
        **getattr(request, "param", {}),
    )


@pytest.fixture
async def worker(
    worker_database: str, settings: UsersSettings, verifier: TokenVerifier
) -> AsyncIterator[Worker]:
    bus = MemoryBus()
    database = await asyncpg.connect(worker_database)
    async with application(settings, bus) as opened, serve("users", opened, bus, verifier):
        yield Worker(bus=bus, database=database)
    await database.close()
