"""Transactions of MongoDB with a conflict or an unknown result of the commit."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import PyMongoError

from shared.data.mongo_database import Mongo
from shared.outbox.mongo_unit_of_work import MongoUnitOfWork
from shared.outbox.unit_of_work import current_unit_of_work
from tests.notes import an_operation, mongo_notes

Unique = Callable[[str], str]
WRITERS = 20


@pytest.fixture
async def mongo(mongo_url: str, unique: Unique) -> AsyncIterator[Mongo]:
    """A database of its own, with one counter."""
    async with mongo_notes(mongo_url, unique) as notes:
        assert isinstance(notes.store, Mongo)
        await notes.store.database["counters"].insert_one({"_id": "one", "value": 0})
        yield notes.store


async def increment(mongo: Mongo) -> None:
    unit = current_unit_of_work()
    assert isinstance(unit, MongoUnitOfWork)
    async with unit.join() as session:
        counters = mongo.database["counters"]
        found = await counters.find_one({"_id": "one"}, session=session)
        assert found is not None
        value = {"$set": {"value": found["value"] + 1}}
        await counters.update_one({"_id": "one"}, value, session=session)


async def value_of(mongo: Mongo) -> Any:
    counter = await mongo.database["counters"].find_one({"_id": "one"})
    return counter and counter["value"]


async def test_conflicting_operations_are_retried_within_a_second_one_at_a_time(
    mongo: Mongo,
) -> None:
    attempts, running, most = Counter[int](), 0, 0

    async def write(number: int) -> None:
        async def handler() -> bytes:
            nonlocal running, most
            attempts[number] += 1
            retried = attempts[number] > 1
            running += retried
            most = max(most, running)
            try:
                await increment(mongo)
            finally:
                running -= retried
            return b""

        await mongo.perform(an_operation(f"write {number}"), handler)

    async with asyncio.timeout(5):
        await asyncio.gather(*(write(number) for number in range(WRITERS)))

    assert await value_of(mongo) == WRITERS
    assert attempts.total() > WRITERS
    assert most == 1


async def test_commit_with_an_unknown_result_is_repeated_without_a_second_effect(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, commits, runs = AsyncClientSession.commit_transaction, 0, 0

    async def lose_results(session: AsyncClientSession) -> None:
        nonlocal commits
        commits += 1
        await commit(session)
        if commits <= 3:
            label = ["UnknownTransactionCommitResult"]
            raise PyMongoError("lost", error_labels=label)

    async def handler() -> bytes:
        nonlocal runs
        runs += 1
        await increment(mongo)
        return b"done"

    monkeypatch.setattr(AsyncClientSession, "commit_transaction", lose_results)
    began = time.monotonic()
    async with asyncio.timeout(5):
        result = await mongo.perform(an_operation("unknown"), handler)
    took = time.monotonic() - began

    assert (result.reply, result.replayed, runs, commits) == (b"done", False, 1, 4)
    assert took > 0.25  # it waits between the attempts
    assert await value_of(mongo) == 1
