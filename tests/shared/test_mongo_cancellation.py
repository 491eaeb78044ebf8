"""A client of MongoDB works after operations that were cancelled while they waited."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import httpx
import pytest
from pydantic import SecretStr

from shared.data import mongo_database
from shared.data.mongo_database import open_mongo
from shared.errors import ServiceError

Unique = Callable[[str], str]

_OPERATIONS: Final = 50


async def cancel_as_the_first_one_fails(operation: Callable[[], Awaitable[Any]]) -> str:
    """Start operations together; cancel the others when the first one ends; return its reason.

    The waits of all of them end at that time, and each acquires the lock of the client again.
    """
    running = [asyncio.ensure_future(operation()) for _ in range(_OPERATIONS)]
    done, others = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for other in others:
        other.cancel()
    if others:
        await asyncio.wait(others, timeout=5)
    error = done.pop().exception()
    assert isinstance(error, ServiceError)
    return error.reason


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in a loop of its own, which a blocked client would never let end."""
    loop = asyncio.new_event_loop()
    running = loop.create_task(test)
    loop.run_until_complete(asyncio.wait([running], timeout=10))
    assert running.done()
    loop.close()
    running.result()


def test_cancelled_waits_for_a_server_do_not_block_the_client() -> None:
    async def operations() -> None:
        async with open_mongo(SecretStr("mongodb://127.0.0.1:1/x?replicaSet=x")) as mongo:
            for _ in range(2):
                assert await cancel_as_the_first_one_fails(mongo.ping) == "DATABASE_UNAVAILABLE"
            with pytest.raises(ServiceError, match="unavailable"):
                await mongo.ping()

    run(operations())


def test_cancelled_waits_for_a_connection_do_not_block_the_client(
    mongo_url: str, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo_database, "_POOL_TIMEOUT_MS", 50)
    url = httpx.URL(mongo_url)
    url = url.copy_merge_params({"maxPoolSize": "1"}).copy_with(path=unique(f"{url.path}_"))

    async def operations() -> None:
        async with open_mongo(SecretStr(str(url))) as mongo:
            things = mongo.database["things"]
            await things.insert_one({})
            slow = asyncio.create_task(things.find_one({"$where": "sleep(1000) || true"}))
            await asyncio.sleep(0)
            for _ in range(3):
                assert await cancel_as_the_first_one_fails(mongo.ping) == "DATABASE_BUSY"
            await slow
            await mongo.ping()

    run(operations())
