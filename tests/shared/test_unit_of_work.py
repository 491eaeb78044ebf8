"""Units of work on real databases: effect, events and reply are committed together or not."""

import asyncio
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from postbus.bus.v1 import Event
from postbus_runtime.reasons import Reason
from shared.data.postgres_sessions import Postgres
from shared.errors import Code, ServiceError
from shared.outbox.inbox import Operation, OperationResult
from shared.outbox.relay import flush
from shared.outbox.unit_of_work import (
    current_unit_of_work,
    mark_replayed,
    outside_unit_of_work,
    perform_separately,
    set_reply_owner,
    without_store,
)
from tests.notes import Broker, Notes, an_operation, postgres_notes, publish

Unique = Callable[[str], str]
CONNECTIONS = 10
"""The size of the pool of PostgreSQL."""


async def test_repeated_operation_has_one_effect_and_the_first_reply(notes: Notes) -> None:
    replies = iter([b"first", b"second"])

    async def handler() -> bytes:
        await notes.add("once")
        return next(replies)

    results = [await notes.store.perform(an_operation("once"), handler) for _ in range(2)]

    assert results == [OperationResult(b"first"), OperationResult(b"first", replayed=True)]
    assert await notes.count("once") == 1


async def test_concurrent_duplicates_have_one_effect_and_one_reply(notes: Notes) -> None:
    runs = iter(range(1000))

    async def handler() -> bytes:
        await notes.add("duplicate")
        return str(next(runs)).encode()

    operation = an_operation("duplicate")
    results = await asyncio.gather(*(notes.store.perform(operation, handler) for _ in range(20)))

    assert len({result.reply for result in results}) == 1
    assert [result.replayed for result in results].count(False) == 1
    assert await notes.count("duplicate") == 1


async def test_other_request_with_the_same_operation_id_is_refused(notes: Notes) -> None:
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


async def test_erased_reply_is_gone_and_its_operation_still_has_one_effect(notes: Notes) -> None:
    async def handler() -> bytes:
        await notes.add("erased")
        return b"name of alice"

    operation, of_bob = (an_operation(f"of {name}", owner=name) for name in ("alice", "bob"))
    for each in (operation, of_bob):
        await notes.store.perform(each, handler)
    assert await notes.store.erase_replies("alice") is False

    with pytest.raises(ServiceError, match="ALREADY_DONE"):
        await notes.store.perform(operation, handler)
    assert (await notes.store.perform(of_bob, handler)).replayed
    assert await notes.count("erased") == 2


async def test_reply_of_a_sign_up_belongs_to_the_new_user(notes: Notes) -> None:
    async def sign_up() -> bytes:
        await notes.add("signed up")
        set_reply_owner("carol")
        return b"address of carol"

    await notes.store.perform(an_operation("sign-up"), sign_up)
    await notes.store.erase_replies("carol")

    with pytest.raises(ServiceError, match="ALREADY_DONE"):
        await notes.store.perform(an_operation("sign-up"), sign_up)


async def test_empty_reply_is_kept_when_the_replies_of_its_caller_are_erased(notes: Notes) -> None:
    async def delete() -> bytes:
        await notes.add("deleted")
        return b""

    operation = an_operation("delete", owner="dora")
    await notes.store.perform(operation, delete)
    await notes.store.erase_replies("dora")

    assert await notes.store.perform(operation, delete) == OperationResult(b"", replayed=True)


async def test_replies_are_erased_500_at_a_time(notes: Notes) -> None:
    async def handler() -> bytes:
        await notes.add("many")
        return b"reply"

    for number in range(501):
        await notes.store.perform(an_operation(f"many {number}", owner="erin"), handler)

    assert [await notes.store.erase_replies("erin") for _ in range(2)] == [True, False]


async def test_secret_reply_is_not_stored(notes: Notes) -> None:
    async def handler() -> bytes:
        await notes.add("secret")
        return b"token"

    operation = an_operation("secret", secret=True)
    assert await notes.store.perform(operation, handler) == OperationResult(b"token")
    with pytest.raises(ServiceError, match="ALREADY_DONE"):
        await notes.store.perform(operation, handler)

    assert await notes.count("secret") == 1


async def test_failed_operation_has_no_effect_and_can_be_repeated(notes: Notes) -> None:
    broker = Broker()

    async def failing() -> bytes:
        await notes.add("undone")
        publish("undone")
        raise ServiceError(Reason("NOT_NOW", Code.FAILED_PRECONDITION), "Not now.")

    async def succeeding() -> bytes:
        await notes.add("undone")
        return b"done"

    with pytest.raises(ServiceError, match="NOT_NOW"):
        await notes.store.perform(an_operation("undone"), failing)
    assert await notes.count("undone") == 0
    await flush(notes.store, broker.publish)
    assert broker.event_ids == []

    result = await notes.store.perform(an_operation("undone"), succeeding)
    assert result == OperationResult(b"done")
    assert await notes.count("undone") == 1


async def test_handler_that_stores_its_replies_itself_marks_them_as_replayed(notes: Notes) -> None:
    async def handler() -> bytes:
        mark_replayed()
        return b"stored elsewhere"

    async def drop(_event: object) -> None:
        pass

    expected = OperationResult(b"stored elsewhere", replayed=True)
    assert await notes.store.perform(an_operation("marked"), handler) == expected
    assert await without_store(drop)(an_operation("marked"), handler) == expected


async def test_tasks_of_one_handler_share_its_transaction(notes: Notes) -> None:
    async def handler() -> bytes:
        await asyncio.gather(*(notes.add("together") for _ in range(5)))
        raise ServiceError(Reason("ABORTED", Code.ABORTED), "Rolled back.")

    with pytest.raises(ServiceError, match="ABORTED"):
        await notes.store.perform(an_operation("together"), handler)

    assert await notes.count("together") == 0


async def test_handler_that_catches_every_exception_still_has_one_effect(notes: Notes) -> None:
    async def handler() -> bytes:
        try:
            await notes.add("swallowed")
        except BaseException:  # noqa: BLE001  # the mistake under test
            return b"never sent"
        return b"first"

    results = [await notes.store.perform(an_operation("swallowed"), handler) for _ in range(2)]

    assert [result.reply for result in results] == [b"first", b"first"]
    assert await notes.count("swallowed") == 1


async def test_event_with_an_older_or_equal_version_is_dropped(notes: Notes) -> None:
    async def deliver(id_: str, version: int) -> None:
        async def handler() -> bytes:
            await notes.add(f"{id_} {version}")
            return b""

        key = Operation.key_of("event", "consumer", id_)
        event = Operation(key=key, begin_immediately=True, subject="s1", version=version)
        await notes.store.perform(event, handler)

    delivered = [("a", 1), ("c", 3), ("b", 2), ("c", 3), ("e", 3), ("d", 4)]
    for id_, version in delivered:
        await deliver(id_, version)

    counts = [await notes.count(f"{id_} {version}") for id_, version in sorted(delivered)]
    assert counts == [1, 0, 1, 1, 1, 0]


async def test_late_event_runs_the_handler_if_it_handles_late_events(notes: Notes) -> None:
    handled: list[tuple[int, bool]] = []

    async def deliver(id_: str, version: int) -> None:
        async def handler() -> bytes:
            unit = current_unit_of_work()
            assert unit is not None
            handled.append((version, unit.late))
            return b""

        key = Operation.key_of("event", "patient", id_)
        event = Operation(
            key=key, begin_immediately=True, subject="s2", version=version, handles_late=True
        )
        await notes.store.perform(event, handler)

    for id_, version in (("a", 3), ("b", 2), ("b", 2), ("c", 3), ("d", 4)):
        await deliver(id_, version)

    assert handled == [(3, False), (2, True), (3, True), (4, False)]


async def test_task_that_outlives_its_handler_holds_no_connection(notes: Notes) -> None:
    """Every task starts while all connections are in use, and gets one after its handler ended."""
    late: list[asyncio.Task[None]] = []

    for round_ in range(12):
        held, release = asyncio.Semaphore(0), asyncio.Event()

        async def hold(held: asyncio.Semaphore = held, release: asyncio.Event = release) -> bytes:
            await notes.add("held")
            held.release()
            await release.wait()
            return b""

        async def leave() -> bytes:
            late.append(asyncio.create_task(notes.add("late")))
            await asyncio.sleep(0)  # the task runs until it waits for a connection
            raise ServiceError(Reason("LATER", Code.ABORTED), "Later.")

        holders = [
            asyncio.create_task(notes.store.perform(an_operation(f"{round_} {number}"), hold))
            for number in range(CONNECTIONS)
        ]
        for _ in holders:
            await held.acquire()
        with pytest.raises(ServiceError, match="LATER"):
            await notes.store.perform(an_operation(f"leaving {round_}"), leave)
        release.set()
        await asyncio.gather(*holders)
    await asyncio.gather(*late, return_exceptions=True)

    async def last() -> bytes:
        await notes.add("last")
        return b""

    await notes.store.perform(an_operation("last"), last)
    assert await notes.count("last") == 1


async def test_purge_deletes_every_old_operation_and_no_other(
    postgres_url: str, unique: Unique
) -> None:
    old = sa.text(
        "INSERT INTO inbox (key, fingerprint, done_at)"
        " SELECT n::text, '', now() - interval '25 hours' FROM generate_series(1, 25000) n"
    )
    new = sa.text(
        "INSERT INTO inbox (key, fingerprint, done_at) VALUES ('new', '', now()),"
        " ('23 hours old', '', now() - interval '23 hours')"
    )
    count_batches = sa.text(
        "CREATE FUNCTION count_batch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO notes SELECT count(*)::text FROM deleted; RETURN NULL; END $$"
    )
    on_delete = sa.text(
        "CREATE TRIGGER batches AFTER DELETE ON inbox REFERENCING OLD TABLE AS deleted"
        " FOR EACH STATEMENT EXECUTE FUNCTION count_batch()"
    )
    async with postgres_notes(postgres_url, unique) as notes:
        assert isinstance(notes.store, Postgres)
        async with notes.store.transaction() as session:
            connection = await session.connection()
            for statement in (old, new, count_batches, on_delete):
                await connection.execute(statement)

        await notes.store.purge()

        async with notes.store.transaction() as session:
            connection = await session.connection()
            left = (await connection.execute(sa.text("SELECT key FROM inbox"))).scalars().all()
            deleted = (await connection.execute(sa.text("SELECT note FROM notes"))).scalars().all()
    assert sorted(left) == ["23 hours old", "new"]
    assert deleted == ["10000", "10000", "5000"]


async def test_uncommitted_changes_are_visible_only_inside_the_unit_of_work(
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
            with outside_unit_of_work():
                await read()
            return b""

        await store.perform(an_operation("reads"), handler)
        await read()

    assert counted == [1, 0, 1]


def test_key_of_an_operation_depends_on_the_limits_of_its_parts() -> None:
    keys = {Operation.key_of(*parts) for parts in (("a", "bc"), ("ab", "c"), ("abc",))}

    assert len(keys) == 3


async def test_separate_operations_of_all_connections_do_not_wait_for_each_other(
    notes: Notes,
) -> None:
    begun = asyncio.Barrier(CONNECTIONS)

    async def fail(number: int) -> None:
        async def separately() -> bytes:
            await notes.add("kept")
            return b""

        async def handler() -> bytes:
            await notes.add("undone")
            await begun.wait()  # every connection is in use
            await perform_separately(notes.store, an_operation(f"kept {number}"), separately)
            raise ServiceError(Reason("ABORTED", Code.ABORTED), "Rolled back.")

        with pytest.raises(ServiceError, match="ABORTED"):
            await notes.store.perform(an_operation(f"fails {number}"), handler)

    await asyncio.gather(*(fail(number) for number in range(CONNECTIONS)))

    assert (await notes.count("kept"), await notes.count("undone")) == (CONNECTIONS, 0)


async def test_service_without_a_store_publishes_no_event_of_a_failed_handler() -> None:
    published: list[str] = []

    async def drop(event: Event) -> None:
        published.append(event.id)

    async def handler() -> bytes:
        publish("undone")
        raise ServiceError(Reason("ABORTED", Code.ABORTED), "Fails.")

    with pytest.raises(ServiceError, match="ABORTED"):
        await without_store(drop)(an_operation("fails"), handler)

    assert published == []
