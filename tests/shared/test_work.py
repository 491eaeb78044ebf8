"""Units of work on real databases: an effect once, with its events and its reply, or not at all."""

import asyncio
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from shared.data.postgres_sessions import Postgres
from shared.errors import Code, ServiceError
from shared.outbox.relay import flush
from shared.outbox.unit_of_work import Operation, outside_work
from tests.notes import Broker, Notes, an_operation, postgres_notes, publish

Unique = Callable[[str], str]


async def test_repeated_operation_has_one_effect_and_the_first_reply(notes: Notes) -> None:
    replies = iter([b"first", b"second"])

    async def handler() -> bytes:
        await notes.add("once")
        return next(replies)

    operations = [an_operation("once"), an_operation("once")]
    answers = [await notes.store.perform(operation, handler) for operation in operations]

    assert answers == [b"first", b"first"]
    assert [operation.replayed for operation in operations] == [False, True]
    assert await notes.count("once") == 1


async def test_concurrent_duplicates_have_one_effect_and_one_reply(notes: Notes) -> None:
    runs = iter(range(1000))

    async def handler() -> bytes:
        await notes.add("duplicate")
        await asyncio.sleep(0.05)
        return str(next(runs)).encode()

    operation = an_operation("duplicate")
    answers = await asyncio.gather(*(notes.store.perform(operation, handler) for _ in range(20)))

    assert len(set(answers)) == 1
    assert await notes.count("duplicate") == 1


async def test_other_request_under_the_same_name_is_refused(notes: Notes) -> None:
    async def handler() -> bytes:
        await notes.add("reused")
        return b""

    await notes.store.perform(an_operation("reused", b"one"), handler)
    with pytest.raises(ServiceError) as raised:
        await notes.store.perform(an_operation("reused", b"other"), handler)

    assert (raised.value.code, raised.value.reason) == (
        Code.INVALID_ARGUMENT,
        "OPERATION_ID_REUSED",
    )
    assert await notes.count("reused") == 1


async def test_secret_reply_is_not_kept(notes: Notes) -> None:
    async def handler() -> bytes:
        await notes.add("secret")
        return b"token"

    operation = an_operation("secret")
    operation.secret = True
    assert await notes.store.perform(operation, handler) == b"token"
    with pytest.raises(ServiceError, match="ALREADY_DONE"):
        await notes.store.perform(operation, handler)

    assert await notes.count("secret") == 1


async def test_handler_that_fails_leaves_nothing_and_may_be_tried_again(notes: Notes) -> None:
    broker = Broker()

    async def failing() -> bytes:
        await notes.add("undone")
        publish("undone")
        raise ServiceError(Code.FAILED_PRECONDITION, "NOT_NOW", "Not now.")

    async def succeeding() -> bytes:
        await notes.add("undone")
        return b"done"

    with pytest.raises(ServiceError, match="NOT_NOW"):
        await notes.store.perform(an_operation("undone"), failing)
    assert await notes.count("undone") == 0
    await flush(notes.store, broker.publish)
    assert broker.has == []

    assert await notes.store.perform(an_operation("undone"), succeeding) == b"done"
    assert await notes.count("undone") == 1


async def test_tasks_of_one_handler_share_its_work(notes: Notes) -> None:
    async def handler() -> bytes:
        await asyncio.gather(*(notes.add("together") for _ in range(5)))
        raise ServiceError(Code.ABORTED, "ABORTED", "After all not.")

    with pytest.raises(ServiceError, match="ABORTED"):
        await notes.store.perform(an_operation("together"), handler)

    assert await notes.count("together") == 0


async def test_handler_that_swallows_everything_still_has_one_effect(notes: Notes) -> None:
    async def handler() -> bytes:
        try:
            await notes.add("swallowed")
        except BaseException:  # noqa: BLE001  # as careless as can be
            return b"never sent"
        return b"first"

    answers = [await notes.store.perform(an_operation("swallowed"), handler) for _ in range(2)]

    assert answers == [b"first", b"first"]
    assert await notes.count("swallowed") == 1


async def test_event_that_comes_after_a_later_one_is_dropped(notes: Notes) -> None:
    async def deliver(id_: str, version: int) -> None:
        async def handler() -> bytes:
            await notes.add(f"version {version}")
            return b""

        key = Operation.key_of("event", "consumer", id_)
        event = Operation(key=key, begin_immediately=True, subject="s1", version=version)
        await notes.store.perform(event, handler)

    await deliver("a", 1)
    await deliver("c", 3)
    await deliver("b", 2)
    await deliver("c", 3)
    await deliver("d", 4)

    counts = [await notes.count(f"version {version}") for version in (1, 2, 3, 4)]
    assert counts == [1, 0, 1, 1]


async def test_event_that_comes_late_is_handled_as_such_where_that_is_asked_for(
    notes: Notes,
) -> None:
    late: list[tuple[int, bool]] = []

    async def deliver(id_: str, version: int) -> None:
        async def handler() -> bytes:
            late.append((version, event.late))
            return b""

        key = Operation.key_of("event", "patient", id_)
        event = Operation(
            key=key, begin_immediately=True, subject="s2", version=version, handles_late=True
        )
        await notes.store.perform(event, handler)

    for id_, version in (("a", 3), ("b", 2), ("b", 2), ("c", 3), ("d", 4)):
        await deliver(id_, version)

    assert late == [(3, False), (2, True), (3, True), (4, False)]


async def test_task_that_outlives_its_handler_keeps_no_connection(notes: Notes) -> None:
    hold = asyncio.Event()

    async def holding(name: str) -> None:
        async def handler() -> bytes:
            await notes.add(name)
            await hold.wait()
            return b""

        await notes.store.perform(an_operation(name), handler)

    late: list[asyncio.Task[None]] = []

    async def leaving() -> bytes:
        late.append(asyncio.create_task(notes.add("late")))
        await asyncio.sleep(0.05)
        raise ServiceError(Code.ABORTED, "LATER", "Later.")

    for round_ in range(12):
        hold.clear()
        holders = [asyncio.create_task(holding(f"{round_} {number}")) for number in range(10)]
        await asyncio.sleep(0.1)
        with pytest.raises(ServiceError, match="LATER"):
            await notes.store.perform(an_operation(f"leaving {round_}"), leaving)
        hold.set()
        await asyncio.gather(*holders)
    await asyncio.gather(*late, return_exceptions=True)

    await notes.store.perform(an_operation("last"), lambda: _noted(notes))
    assert await notes.count("last") == 1


async def _noted(notes: Notes) -> bytes:
    await notes.add("last")
    return b""


async def test_purge_forgets_every_old_operation_and_no_other(
    postgres_url: str, unique: Unique
) -> None:
    old = sa.text(
        "INSERT INTO inbox (key, fingerprint, done_at)"
        " SELECT n::text, '', now() - interval '25 hours' FROM generate_series(1, 25000) n"
    )
    new = sa.text("INSERT INTO inbox (key, fingerprint) VALUES ('new', '')")
    async with postgres_notes(postgres_url, unique) as notes:
        assert isinstance(notes.store, Postgres)
        async with notes.store.transaction() as session:
            connection = await session.connection()
            for statement in (old, new):
                await connection.execute(statement)

        await notes.store.purge()

        async with notes.store.transaction() as session:
            connection = await session.connection()
            left = (await connection.execute(sa.text("SELECT key FROM inbox"))).scalars().all()
    assert left == ["new"]


async def test_work_reads_what_it_has_written_and_nobody_else_does(
    postgres_url: str, unique: Unique
) -> None:
    count = sa.text("SELECT count(*) FROM notes")
    counted = []

    async with postgres_notes(postgres_url, unique) as notes:
        store = notes.store
        assert isinstance(store, Postgres)

        async def read() -> None:
            async with store.reading() as session:
                counted.append((await (await session.connection()).execute(count)).scalar_one())

        async def handler() -> bytes:
            await notes.add("mine")
            await read()
            with outside_work():
                await read()
            return b""

        await store.perform(an_operation("reads"), handler)
        await read()

    assert counted == [1, 0, 1]
