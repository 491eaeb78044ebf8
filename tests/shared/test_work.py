"""Units of work on real databases: an effect once, with its events and its reply, or not at all."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import sqlalchemy as sa

from postbus.bus.v1 import Event
from shared.errors import Code, ServiceError
from shared.mongo import Mongo
from shared.postgres import Postgres
from shared.relay import flush, relay
from shared.work import Operation, current_work, outside_work
from tests.notes import Notes, mongo_notes, postgres_notes

Unique = Callable[[str], str]


@pytest.fixture(params=["postgres", "mongo"])
async def notes(
    request: pytest.FixtureRequest, unique: Unique, postgres_url: str, mongo_url: str
) -> AsyncIterator[Notes]:
    """A database of its own."""
    if request.param == "postgres":
        async with postgres_notes(postgres_url, unique) as opened:
            yield opened
    else:
        async with mongo_notes(mongo_url, unique) as opened:
            yield opened


def an_operation(name: str, asked: bytes = b"asked") -> Operation:
    return Operation(key=Operation.name("call", name), fingerprint=asked)


def an_event(id_: str) -> Event:
    return Event(id=id_, type="postbus.test.v1.Noted", data=b"noted")


async def stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def publish(id_: str) -> None:
    work = current_work()
    assert work is not None
    work.events.append(an_event(id_))


class Broker:
    """Takes events, unless it is away."""

    def __init__(self) -> None:
        self.has: list[str] = []
        self.away = False
        self.refused: set[str] = set()

    async def publish(self, event: Event) -> None:
        if self.away or event.id in self.refused:
            raise ServiceError(Code.UNAVAILABLE, "NOT_CONNECTED", "Away.")
        self.has.append(event.id)


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


async def test_events_reach_the_broker_soon_after_the_commit_and_in_order(notes: Notes) -> None:
    broker = Broker()
    delays: list[float] = []
    relaying = asyncio.create_task(relay(notes.store, broker.publish))
    await asyncio.sleep(0.1)

    for number in range(20):
        name = f"{number:03}"

        async def handler(name: str = name) -> bytes:
            await notes.add(name)
            publish(name)
            await asyncio.sleep(0.01)
            assert name not in broker.has  # not before the commit
            return b""

        await notes.store.perform(an_operation(name), handler)
        committed = time.monotonic()
        async with asyncio.timeout(5):
            while name not in broker.has:  # noqa: ASYNC110  # what is measured
                await asyncio.sleep(0.001)
        delays.append(time.monotonic() - committed)

    await stop(relaying)
    assert broker.has == [f"{number:03}" for number in range(20)]
    assert sorted(delays)[10] < 0.5  # far from the second of the poll


async def test_events_wait_for_a_broker_that_is_away(notes: Notes) -> None:
    broker = Broker()
    broker.away = True

    async def handler() -> bytes:
        await notes.add("away")
        for number in range(250):
            publish(f"{number:03}")
        return b""

    await notes.store.perform(an_operation("away"), handler)
    relaying = asyncio.create_task(relay(notes.store, broker.publish))
    await asyncio.sleep(0.3)
    assert broker.has == []
    broker.away = False
    async with asyncio.timeout(10):
        while len(broker.has) < 250:  # noqa: ASYNC110  # polls the broker
            await asyncio.sleep(0.01)
    await stop(relaying)

    assert sorted(broker.has) == [f"{number:03}" for number in range(250)]


async def test_two_relays_do_not_send_twice(notes: Notes) -> None:
    broker = Broker()

    async def handler() -> bytes:
        for number in range(500):
            publish(f"{number:03}")
        return b""

    await notes.store.perform(an_operation("two"), handler)
    relays = [asyncio.create_task(relay(notes.store, broker.publish)) for _ in range(2)]
    async with asyncio.timeout(10):
        while len(broker.has) < 500:  # noqa: ASYNC110  # polls the broker
            await asyncio.sleep(0.01)
    await stop(*relays)

    assert sorted(broker.has) == [f"{number:03}" for number in range(500)]


async def test_event_that_comes_after_a_later_one_is_dropped(notes: Notes) -> None:
    async def deliver(id_: str, version: int) -> None:
        async def handler() -> bytes:
            await notes.add(f"version {version}")
            return b""

        key = Operation.name("event", "consumer", id_)
        event = Operation(key=key, at_once=True, subject="s1", version=version)
        await notes.store.perform(event, handler)

    await deliver("a", 1)
    await deliver("c", 3)
    await deliver("b", 2)
    await deliver("c", 3)
    await deliver("d", 4)

    counts = [await notes.count(f"version {version}") for version in (1, 2, 3, 4)]
    assert counts == [1, 0, 1, 1]


async def test_many_events_leave_though_no_commit_follows(notes: Notes) -> None:
    broker = Broker()

    def handler(number: int) -> Callable[[], Awaitable[bytes]]:
        async def handle() -> bytes:
            publish(f"{number:03}")
            return b""

        return handle

    for number in range(350):
        await notes.store.perform(an_operation(f"one of many: {number}"), handler(number))
    forwarded = []
    while count := await notes.store.forward(broker.publish):
        forwarded.append(count)

    assert forwarded == [100, 100, 100, 50]
    assert broker.has == [f"{number:03}" for number in range(350)]


async def test_events_of_an_operation_leave_in_order_and_only_those_that_have_not(
    notes: Notes,
) -> None:
    broker = Broker()
    broker.refused = {"3"}

    async def handler() -> bytes:
        for number in range(5):
            publish(f"{number}")
        return b"done"

    await notes.store.perform(an_operation("five events"), handler)
    with pytest.raises(ServiceError):
        await notes.store.forward(broker.publish)
    assert broker.has == ["0", "1", "2", "4"]
    broker.refused = set()

    assert await notes.store.forward(broker.publish) == 1
    assert broker.has == ["0", "1", "2", "4", "3"]
    assert await notes.store.perform(an_operation("five events"), handler) == b"done"
    assert await notes.store.forward(broker.publish) == 0


async def test_operations_of_many_events_leave_a_hundred_or_so_at_once(notes: Notes) -> None:
    broker = Broker()

    def handler(number: int) -> Callable[[], Awaitable[bytes]]:
        async def handle() -> bytes:
            for each in range(30):
                publish(f"{number} {each:02}")
            return b""

        return handle

    for number in range(6):
        await notes.store.perform(an_operation(f"thirty events: {number}"), handler(number))
    forwarded = []
    while count := await notes.store.forward(broker.publish):
        forwarded.append(count)

    assert max(forwarded) <= 130
    assert broker.has == [f"{number} {each:02}" for number in range(6) for each in range(30)]


@pytest.mark.parametrize("notes", ["mongo"], indirect=True)
async def test_mongo_keeps_what_waits_and_forgets_what_is_done(
    notes: Notes,
) -> None:
    """Its index on `done_at` deletes a day later."""

    async def handler() -> bytes:
        publish("waits")
        return b"done"

    await notes.store.perform(an_operation("waits"), handler)
    assert isinstance(notes.store, Mongo)
    inbox = notes.store.database["inbox"]
    [waiting] = await inbox.find().to_list()
    await notes.store.forward(Broker().publish)
    [done] = await inbox.find().to_list()

    assert waiting.keys() == {"_id", "fingerprint", "reply", "events", "event_id", "until"}
    assert done.keys() == {"_id", "fingerprint", "reply", "done_at"}


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
