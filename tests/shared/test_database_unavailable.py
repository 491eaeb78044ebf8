"""Calls end in bounded time while a database is unavailable or does not respond."""

import asyncio
from collections.abc import AsyncIterator, Callable

import asyncpg
import httpx
import pytest
from pydantic import SecretStr
from pymongo.write_concern import WriteConcern
from sqlalchemy import text

from shared.data import postgres_sessions
from shared.data.mongo_database import Mongo, open_mongo
from shared.data.postgres_sessions import Postgres, open_postgres
from shared.errors import Code, Outcome, ServiceError
from tests.notes import PostgresNotes, an_operation, postgres_notes
from tests.people import eventually
from tests.proxy import Proxy

Unique = Callable[[str], str]


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """The port of a server that accepts connections and never responds."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await asyncio.Event().wait()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in writers:
        writer.transport.abort()


@pytest.fixture
async def notes(postgres_url: str, unique: Unique) -> AsyncIterator[PostgresNotes]:
    async with postgres_notes(postgres_url, unique) as opened:
        yield opened


def unavailable(error: ServiceError) -> Outcome | int:
    """Return the outcome of an error, which must be UNAVAILABLE."""
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    return error.outcome


async def pid_of(postgres: Postgres) -> int:
    async with postgres.transaction() as session:
        connection = await session.connection()
        return int((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())


async def test_mongo_that_is_unavailable_fails_a_call_in_about_a_second(silent_port: int) -> None:
    url = f"mongodb://127.0.0.1:{silent_port}/x?directConnection=true"
    async with open_mongo(SecretStr(url)) as mongo, asyncio.timeout(4):

        async def handler() -> bytes:
            raise AssertionError("never run")

        operation = an_operation("unavailable")
        operation = type(operation)(key=operation.key, begin_immediately=True)
        with pytest.raises(ServiceError) as raised:
            await mongo.perform(operation, handler)

    assert unavailable(raised.value) == Outcome.NO_EFFECT


async def test_mongo_connections_have_time_limits_and_writes_reach_the_majority() -> None:
    async with open_mongo(SecretStr("mongodb://127.0.0.1:1/x")) as mongo:
        assert isinstance(mongo, Mongo)
        pool = mongo.database.client.options.pool_options
        concern = mongo.database.write_concern

    assert (pool.connect_timeout, pool.wait_queue_timeout) == (2, 2)
    assert concern == WriteConcern("majority", j=True)


async def test_postgres_that_does_not_respond_fails_a_call_after_two_seconds(
    silent_port: int,
) -> None:
    url = f"postgresql://user@127.0.0.1:{silent_port}/x"
    async with open_postgres(SecretStr(url)) as postgres, asyncio.timeout(5):
        with pytest.raises(ServiceError) as raised:
            await pid_of(postgres)

    assert unavailable(raised.value) == Outcome.NO_EFFECT


async def test_postgres_statement_that_takes_too_long_is_ended(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert postgres_sessions._COMMAND_TIMEOUT == 10
    monkeypatch.setattr(postgres_sessions, "_COMMAND_TIMEOUT", 0.1)
    server = str(httpx.URL(postgres_url).copy_with(path="/postgres"))
    async with open_postgres(SecretStr(server)) as postgres, asyncio.timeout(5):
        with pytest.raises(ServiceError) as raised:
            async with postgres.transaction() as session:
                await (await session.connection()).execute(text("SELECT pg_sleep(20)"))

    assert unavailable(raised.value) == Outcome.NO_EFFECT


async def test_postgres_connection_that_the_server_has_closed_is_replaced(
    notes: PostgresNotes, postgres_url: str
) -> None:
    postgres = notes.store
    assert isinstance(postgres, Postgres)
    closed = await pid_of(postgres)
    server = await asyncpg.connect(str(httpx.URL(postgres_url).copy_with(path="/postgres")))
    await server.execute("SELECT pg_terminate_backend($1)", closed)

    async def ended() -> bool:
        query = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"
        return bool(await server.fetchval(query, closed))

    await eventually(ended)
    await server.close()

    assert await pid_of(postgres) != closed


async def test_lost_reply_to_a_commit_has_an_unknown_outcome(notes: PostgresNotes) -> None:
    url = httpx.URL(notes.url)
    proxy = Proxy(url.host, url.port or 5432)
    await proxy.start()
    await notes.execute(
        "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER pause AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION pause()",
    )
    blocker = await asyncpg.connect(notes.url)
    await blocker.execute("SELECT pg_advisory_lock(1)")
    address = SecretStr(str(url.copy_with(host="127.0.0.1", port=proxy.port)))
    async with open_postgres(address) as through_proxy:

        async def handler() -> bytes:
            async with through_proxy.transaction() as session:
                statement = text("INSERT INTO notes VALUES ('committed?')")
                await (await session.connection()).execute(statement)
            return b""

        async def commits() -> bool:
            return b"COMMIT" in proxy.sent

        call = asyncio.create_task(through_proxy.perform(an_operation("lost"), handler))
        await eventually(commits)
        proxy.break_()
        with pytest.raises(ServiceError) as raised:
            await call
    await blocker.close()
    await proxy.stop()

    assert unavailable(raised.value) == Outcome.UNKNOWN


async def test_connection_that_is_lost_before_the_commit_has_no_effect(
    notes: PostgresNotes,
) -> None:
    async def handler() -> bytes:
        await notes.add("lost")
        await notes.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return b""

    with pytest.raises(ServiceError) as raised:
        await notes.store.perform(an_operation("lost"), handler)

    assert unavailable(raised.value) == Outcome.NO_EFFECT
    assert await notes.count("lost") == 0
