"""Counters that many transactions change at once."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest
from bson import ObjectId
from pymongo.errors import AutoReconnect

from shared.context import Context
from shared.data import mongo_counters
from shared.data.mongo_counters import CountChange, Counters
from shared.data.mongo_database import Mongo
from shared.errors import Outcome, database_unavailable
from tests.notes import an_operation, mongo_notes
from tests.people import eventually

Unique = Callable[[str], str]
WRITERS = 32


@pytest.fixture
async def mongo(mongo_url: str, unique: Unique) -> AsyncIterator[Mongo]:
    """A database of its own, with the counted documents `one` and `two`."""
    async with mongo_notes(mongo_url, unique) as notes:
        assert isinstance(notes.store, Mongo)
        documents = [{"_id": name, "likes": 0} for name in ("one", "two")]
        await notes.store.database["counted"].insert_many(documents)
        yield notes.store


def a_change(id_: str = "one", step: int = 1) -> CountChange:
    return CountChange(collection="counted", id=id_, counter="likes", step=step)


async def stored(mongo: Mongo, id_: str = "one") -> int:
    document = await mongo.database["counted"].find_one({"_id": id_})
    assert document is not None
    return int(document["likes"])


async def like(mongo: Mongo, name: str, id_: str = "one") -> int:
    """Count in a unit of work; return the stored counter after the reply."""

    async def handler() -> bytes:
        await mongo.counters.add([a_change(id_)])
        return b"liked"

    await mongo.perform(an_operation(name), handler)
    return await stored(mongo, id_)


def kill_before_the_fold(mongo: Mongo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process commit and not fold."""

    async def nothing(_keys: object) -> None:
        return

    monkeypatch.setattr(mongo.counters, "fold", nothing)


async def test_writers_of_one_counter_do_not_conflict_and_each_reads_its_own(
    mongo: Mongo,
) -> None:
    attempts = Counter[int]()

    async def write(number: int) -> int:
        async def handler() -> bytes:
            attempts[number] += 1
            await mongo.counters.add([a_change()])
            return b""

        await mongo.perform(an_operation(f"write {number}"), handler)
        return await stored(mongo)

    seen = await asyncio.gather(*(write(number) for number in range(WRITERS)))

    assert attempts.total() == WRITERS
    assert all(count >= place for place, count in enumerate(sorted(seen), 1))
    assert await stored(mongo) == WRITERS
    assert await mongo.counters.leftovers() == {}


async def test_folds_are_shared_by_the_writers_that_are_waiting(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, run_once = 0, Counters._run_once

    async def count_runs(counters: Counters, keys: list[str]) -> set[str]:
        nonlocal runs
        runs += 1
        return await run_once(counters, keys)

    monkeypatch.setattr(Counters, "_run_once", count_runs)
    monkeypatch.setattr(mongo_counters, "_WAIT_SECONDS", 30)
    lock = mongo.counters._lock
    async with lock:
        writers = [asyncio.create_task(like(mongo, f"write {n}")) for n in range(WRITERS)]
        async with asyncio.timeout(20):
            while len(lock._waiters or ()) < WRITERS:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)
    await asyncio.gather(*writers)

    assert runs <= 2
    assert await stored(mongo) == WRITERS


async def test_two_processes_fold_one_counter_without_a_drift(mongo: Mongo) -> None:
    processes = [mongo, Mongo(mongo.database)]

    await asyncio.gather(
        *(like(each, f"{each} {number}") for each in processes for number in range(WRITERS))
    )

    assert await stored(mongo) == 2 * WRITERS
    assert await mongo.counters.leftovers() == {}


async def test_unfolded_differences_include_those_of_the_unit_of_work(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_before_the_fold(mongo, monkeypatch)
    await like(mongo, "first")
    seen: list[int] = []

    async def handler() -> bytes:
        await mongo.counters.add([a_change()])
        seen.append(await mongo.counters.unfolded("counted/one", "likes"))
        return b""

    await mongo.perform(an_operation("second"), handler)

    assert (seen, await stored(mongo)) == ([2], 0)


async def test_differences_of_a_failed_handler_are_not_counted(mongo: Mongo) -> None:
    async def handler() -> bytes:
        await mongo.counters.add([a_change()])
        raise LookupError

    with pytest.raises(LookupError):
        await mongo.perform(an_operation("failed"), handler)

    assert (await mongo.counters.leftovers(), await stored(mongo)) == ({}, 0)


async def test_differences_of_a_killed_process_are_folded_by_another_within_seconds(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mongo_counters._SWEEP_SECONDS == 1
    monkeypatch.setattr(mongo_counters, "_SWEEP_SECONDS", 0.05)
    kill_before_the_fold(mongo, monkeypatch)
    assert await like(mongo, "killed") == 0

    async def counted() -> bool:
        return await stored(mongo) == 1

    async with Mongo(mongo.database).counters.sweeping():
        await eventually(counted, 5)


async def test_sweep_continues_after_an_error(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo_counters, "_SWEEP_SECONDS", 0.02)
    counters, failures = Mongo(mongo.database).counters, 0
    fold = counters.fold

    async def fail_once(rows: dict[ObjectId, str]) -> None:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise database_unavailable(Outcome.NO_EFFECT)
        await fold(rows)

    monkeypatch.setattr(counters, "fold", fail_once)
    kill_before_the_fold(mongo, monkeypatch)
    await like(mongo, "killed")

    async def counted() -> bool:
        return await stored(mongo) == 1

    async with counters.sweeping():
        await eventually(counted, 5)


async def test_repeated_call_is_counted_before_it_gets_the_stored_reply(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        kill_before_the_fold(mongo, killed)
        assert await like(mongo, "repeated") == 0

    assert await like(mongo, "repeated") == 1


async def test_document_that_another_transaction_has_changed_delays_no_other(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_before_the_fold(mongo, monkeypatch)
    for id_ in ("one", "two"):
        await like(mongo, id_, id_)
    monkeypatch.setattr(mongo_counters, "_WAIT_SECONDS", 0.5)
    counters = Counters(mongo.database)
    rows = await counters.leftovers()
    async with mongo.database.client.start_session() as session:
        await session.start_transaction()
        change = {"$set": {"title": "new"}}
        await mongo.database["counted"].update_one({"_id": "one"}, change, session=session)

        began = time.monotonic()
        await asyncio.gather(*(counters.fold({id_: key}) for id_, key in rows.items()))
        took = time.monotonic() - began
        locked = [await stored(mongo, id_) for id_ in ("one", "two")]
        await session.commit_transaction()
    await counters.fold(await counters.leftovers())

    assert locked == [0, 1]
    assert took < 2
    assert await stored(mongo) == 1


async def test_locked_document_is_folded_within_a_fifth_of_a_second_after_its_release(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mongo_counters._LONGEST_DELAY <= 0.2
    with monkeypatch.context() as killed:
        kill_before_the_fold(mongo, killed)
        await like(mongo, "locked")
    rows = await mongo.counters.leftovers()
    async with mongo.database.client.start_session() as session:
        await session.start_transaction()
        change = {"$set": {"title": "new"}}
        await mongo.database["counted"].update_one({"_id": "one"}, change, session=session)
        folding = asyncio.create_task(mongo.counters.fold(rows))
        await asyncio.wait([folding], timeout=0.3)
        await session.commit_transaction()
    await folding

    assert await stored(mongo) == 1


async def test_fold_ends_once_another_process_has_folded(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        kill_before_the_fold(mongo, killed)
        await like(mongo, "locked")
    rows = await mongo.counters.leftovers()
    monkeypatch.setattr(mongo_counters, "_WAIT_SECONDS", 60.0)
    async with mongo.database.client.start_session() as session:
        await session.start_transaction()
        change = {"$set": {"title": "new"}}
        await mongo.database["counted"].update_one({"_id": "one"}, change, session=session)
        folding = asyncio.create_task(mongo.counters.fold(rows))
        await asyncio.wait([folding], timeout=0.1)
        await mongo.database["count_changes"].delete_many({})  # as another process does
        await mongo.counters.add([a_change("two")])
        other = {"_id": ObjectId(), "key": "counted/one", "counter": "likes", "step": 1}
        await mongo.database["count_changes"].insert_one(other)  # of a later writer
        async with asyncio.timeout(2):
            await folding
        await session.abort_transaction()


@pytest.mark.parametrize(
    ("id_", "takes", "least", "most"),
    [("one", 0.05, 0.19, 2.0), ("one", 0.5, 0.24, 1.9), ("two", 0.5, 0.0, 0.2)],
    ids=["four times as long", "at most 250 ms", "not for another document"],
)
async def test_document_that_was_folded_is_left_to_others_for_a_while(
    id_: str,
    takes: float,
    least: float,
    most: float,
    mongo: Mongo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times: list[float] = []

    async def run(_counters: Counters, _keys: list[str]) -> set[str]:
        times.append(time.monotonic())
        await asyncio.sleep(takes)
        times.append(time.monotonic())
        return set()

    monkeypatch.setattr(Counters, "_run_once", run)
    await mongo.counters.fold({ObjectId(): "counted/one"})
    await mongo.counters.fold({ObjectId(): f"counted/{id_}"})

    assert least <= times[2] - times[1] < most


def hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let folds not end."""

    async def hang(_counters: Counters, _keys: list[str]) -> set[str]:
        await asyncio.Event().wait()
        return set()

    monkeypatch.setattr(Counters, "_run_once", hang)


async def test_call_waits_for_its_fold_for_two_seconds_at_most(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch)

    async with asyncio.timeout(5):
        assert await like(mongo, "slow") == 0


async def test_fold_ends_before_the_deadline_of_the_call(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch)

    with Context(name="test", deadline=time.monotonic() + 1, traceparent=""):
        assert await like(mongo, "slow") == 0


async def test_sweep_leaves_new_differences_to_their_process(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_before_the_fold(mongo, monkeypatch)
    await like(mongo, "new")
    counters, swept = Mongo(mongo.database).counters, list[set[str]]()
    twice = asyncio.Event()

    async def record(rows: dict[ObjectId, str]) -> None:
        swept.append(set(rows.values()))
        if len(swept) == 2:
            twice.set()

    monkeypatch.setattr(mongo_counters, "_SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(counters, "fold", record)
    async with counters.sweeping():
        await twice.wait()

    assert swept[:2] == [set(), {"counted/one"}]


async def test_fold_that_fails_does_not_fail_the_committed_call(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_counters: Counters, _keys: list[str]) -> set[str]:
        raise AutoReconnect("lost")

    monkeypatch.setattr(Counters, "_run_once", fail)

    assert await like(mongo, "failing") == 0
    assert set((await mongo.counters.leftovers()).values()) == {"counted/one"}


async def test_fold_of_a_cancelled_call_is_repeated_by_the_next_one(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, run_once = asyncio.Event(), Counters._run_once

    async def hang_once(counters: Counters, keys: list[str]) -> set[str]:
        if not began.is_set():
            began.set()
            await asyncio.Event().wait()
        return await run_once(counters, keys)

    monkeypatch.setattr(Counters, "_run_once", hang_once)
    first = asyncio.create_task(like(mongo, "first"))
    await began.wait()
    second = asyncio.create_task(like(mongo, "second"))
    first.cancel()

    assert await second == 2


async def test_document_exists_only_while_its_counter_is_positive(mongo: Mongo) -> None:
    def tag(id_: str, step: int, name: str) -> CountChange:
        new = {"name": name}
        return CountChange(collection="tags", id=id_, counter="n", step=step, new=new)

    async def tags() -> list[tuple[str, int]]:
        found = await mongo.database["tags"].find().sort("_id").to_list()
        return [(each["name"], each["n"]) for each in found]

    await mongo.counters.add([tag("a", 1, "A"), tag("b", 1, "B"), tag("a", 1, "again")])
    first = await tags()
    await mongo.counters.add([tag("a", -1, "A"), tag("b", -1, "B"), tag("c", 1, "C")])
    second = await tags()
    await mongo.counters.add([tag("a", -1, "A"), tag("c", -1, "C"), tag("c", 1, "C")])

    assert first == [("A", 2), ("B", 1)]
    assert second == [("A", 1), ("C", 1)]
    assert await tags() == [("C", 1)]


async def test_more_differences_than_one_fold_takes_are_folded_in_several(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mongo_counters._MAX_ROWS == 1000
    monkeypatch.setattr(mongo_counters, "_MAX_ROWS", 10)
    taken, updates = list[int](), mongo_counters._updates

    def count_rows(rows: list[dict[str, object]]) -> object:
        taken.append(len(rows))
        return updates(rows)

    monkeypatch.setattr(mongo_counters, "_updates", count_rows)
    await mongo.counters.add([a_change() for _ in range(25)])

    assert (taken, await stored(mongo)) == ([10, 10, 5], 25)
