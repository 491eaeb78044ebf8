"""A database is available, but no connection to it is free."""

import asyncio
from collections.abc import Callable

import httpx
import pytest
from pydantic import SecretStr
from pymongo.asynchronous.database import AsyncDatabase
from sqlalchemy import text

from shared.data import mongo_database as mongo_module
from shared.data.mongo_database import open_mongo
from shared.data.postgres_sessions import Postgres
from shared.errors import Code, Outcome, ServiceError
from shared.outbox.mongo_errors import driver_errors
from shared.outbox.postgres_unit_of_work import FairLimit
from tests.notes import an_operation, postgres_notes

Unique = Callable[[str], str]


def is_busy(error: ServiceError) -> bool:
    return (error.code, error.reason, error.retry_after, error.outcome) == (
        Code.RESOURCE_EXHAUSTED,
        "DATABASE_BUSY",
        1,
        Outcome.NO_EFFECT,
    )


async def test_limit_without_a_free_connection_in_time_is_database_busy() -> None:
    limit = FairLimit(1, 0.05)

    async with limit, asyncio.timeout(5):
        with pytest.raises(ServiceError) as raised:
            async with limit:
                pass
    async with limit:
        pass

    assert is_busy(raised.value)


async def test_postgres_without_a_free_connection_is_busy_and_responds_to_its_probe(
    postgres_url: str, unique: Unique
) -> None:
    async with postgres_notes(postgres_url, unique) as notes:
        postgres = notes.store
        assert isinstance(postgres, Postgres)
        held, release = asyncio.Semaphore(0), asyncio.Event()

        async def hold() -> None:
            async with postgres.transaction() as session:
                await (await session.connection()).execute(text("SELECT 1"))
                held.release()
                await release.wait()

        holding = [asyncio.create_task(hold()) for _ in range(10)]
        for _ in holding:
            await held.acquire()
        refused: list[ServiceError] = []

        async def handler() -> bytes:
            await notes.add("never")
            return b""

        calls = (notes.count("x"), postgres.perform(an_operation("busy"), handler))
        async with asyncio.timeout(5):
            results = await asyncio.gather(*calls, return_exceptions=True)
        refused += [error for error in results if isinstance(error, ServiceError)]
        await postgres.stored_revision()
        release.set()
        await asyncio.gather(*holding)

        assert [is_busy(each) for each in refused] == [True, True]
        assert await notes.count("never") == 0


async def test_mongo_without_a_free_connection_is_busy(
    mongo_url: str, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo_module, "_POOL_TIMEOUT_MS", 50)
    url = httpx.URL(mongo_url)
    url = url.copy_merge_params({"maxPoolSize": "1"}).copy_with(path=unique(f"{url.path}_"))
    async with open_mongo(SecretStr(str(url))) as mongo:
        database: AsyncDatabase[dict[str, object]] = mongo.database
        await database["things"].insert_one({})
        slow = asyncio.create_task(database["things"].find_one({"$where": "sleep(1000) || true"}))
        await asyncio.sleep(0)

        async def find_while_busy() -> None:
            with driver_errors():
                while not slow.done():
                    await database["things"].find_one({})

        with pytest.raises(ServiceError) as raised:
            await find_while_busy()
        await slow

    assert is_busy(raised.value)
