"""The outbox relay on real databases: each event is published after the commit of its change."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from pymongo import AsyncMongoClient, MongoClient
from pymongo.monitoring import CommandListener

from postbus import reasons
from postbus.bus.v1 import Event
from shared.data.mongo_database import Mongo
from shared.data.postgres_sessions import Postgres
from shared.errors import ServiceError
from shared.outbox import relay as relay_module
from shared.outbox.outbox import EncodedEvent, retry_delay
from shared.outbox.relay import flush, relay
from shared.wire import encode
from tests.buses import opened_bus
from tests.notes import Broker, Notes, an_operation, publish

Unique = Callable[[str], str]
UNKNOWN_FIELD = b"\xc2\x3e\x05later"
"""Field 1000 of a newer Event message; encoding the event again would drop it."""


def publishes(
    *ids: str, type_: str = "postbus.test.v1.Noted", subject: str = ""
) -> Callable[[], Awaitable[bytes]]:
    """Return a handler that publishes events."""

    async def handler() -> bytes:
        for id_ in ids:
            publish(id_, type_, subject)
        return b"done"

    return handler


async def forward_all(notes: Notes, broker: Broker) -> list[int]:
    """Forward until the outbox is empty; return the number of events of each step."""
    forwarded = []
    while count := await notes.store.forward(broker.publish):
        forwarded.append(count)
    return forwarded


async def forward_until(notes: Notes, broker: Broker, count: int) -> None:
    """Forward until the broker has `count` events."""
    async with asyncio.timeout(10):
        while len(broker.event_ids) < count:
            await notes.store.forward(broker.publish)
            await asyncio.sleep(0.02)


async def published(broker: Broker, count: int) -> None:
    """Wait until the broker has `count` events."""
    async with asyncio.timeout(10):
        while len(broker.event_ids) < count:  # noqa: ASYNC110  # polls the broker
            await asyncio.sleep(0.001)


@asynccontextmanager
async def relaying(notes: Notes, broker: Broker) -> AsyncIterator[None]:
    """Run a relay during the block."""
    task = asyncio.create_task(relay(notes.store, broker.publish))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def stored_events(notes: Notes) -> list[bytes]:
    """Return the encoded events of the outbox."""
    if isinstance(notes.store, Postgres):
        async with notes.store.transaction() as session:
            connection = await session.connection()
            rows = await connection.execute(sa.text("SELECT event FROM outbox ORDER BY id"))
            return list(rows.scalars())
    assert isinstance(notes.store, Mongo)
    entries = notes.store.database["inbox"].find({"events": {"$exists": True}}).sort("event_id")
    return [event for entry in await entries.to_list() for event in entry["events"]]


async def store_as_another_process(notes: Notes, events: dict[str, bytes]) -> None:
    """Write to the outbox without a commit in this process, which would wake its relay."""
    if isinstance(notes.store, Postgres):
        insert = sa.text("INSERT INTO outbox (id, event) VALUES (:id, :event)")
        async with notes.store.transaction() as session:
            connection = await session.connection()
            rows = [{"id": id_, "event": event} for id_, event in events.items()]
            await connection.execute(insert, rows)
        return
    assert isinstance(notes.store, Mongo)
    await notes.store.perform(an_operation("another process"), publishes(*events))
    await notes.store.database["inbox"].update_one({}, {"$set": {"events": list(events.values())}})
    notes.store.committed.clear()


async def test_events_are_published_in_order_soon_after_their_commit(notes: Notes) -> None:
    broker = Broker()
    delays: list[float] = []
    async with relaying(notes, broker):
        for number in range(20):
            name = f"{number:03}"

            async def handler(name: str = name) -> bytes:
                await notes.add(name)
                publish(name)
                await asyncio.sleep(0.01)
                assert name not in broker.event_ids  # not before the commit
                return b""

            await notes.store.perform(an_operation(name), handler)
            committed = time.monotonic()
            await published(broker, number + 1)
            delays.append(time.monotonic() - committed)

    assert broker.event_ids == [f"{number:03}" for number in range(20)]
    assert sorted(delays)[10] < 0.5  # far less than the poll interval


async def test_relay_polls_for_events_of_other_processes(notes: Notes) -> None:
    broker = Broker()
    async with relaying(notes, broker):
        await notes.store.perform(an_operation("ours"), publishes("ours"))
        await published(broker, 1)  # the relay now waits for a commit or the next poll
        event = encode(Event(id="theirs", type="postbus.test.v1.Noted"))
        await store_as_another_process(notes, {"theirs": event})
        await published(broker, 2)

    assert broker.event_ids == ["ours", "theirs"]


async def test_events_that_are_being_published_are_left_to_their_relay(notes: Notes) -> None:
    publishing, confirm = asyncio.Event(), asyncio.Event()
    broker = Broker()

    async def publish_slowly(event: EncodedEvent) -> None:
        publishing.set()
        await confirm.wait()
        await broker.publish(event)

    await notes.store.perform(an_operation("slow"), publishes("slow"))
    forwarding = asyncio.create_task(notes.store.forward(publish_slowly))
    await publishing.wait()
    forwarded = [await notes.store.forward(broker.publish)]
    confirm.set()
    forwarded.append(await forwarding)

    assert forwarded == [0, 1]
    assert broker.event_ids == ["slow"]


@pytest.mark.parametrize("notes", ["mongo"], indirect=True)
async def test_mongo_events_of_a_killed_relay_are_published_after_its_lease(notes: Notes) -> None:
    assert isinstance(notes.store, Mongo)
    inbox, leases = notes.store.database["inbox"], list[timedelta]()
    broker = Broker()

    async def be_killed(_event: EncodedEvent) -> None:
        entry = await inbox.find_one({})
        assert entry is not None
        leases.append(entry["until"].replace(tzinfo=UTC) - datetime.now(UTC))
        entries.append(entry)
        raise asyncio.CancelledError

    entries: list[dict[str, Any]] = []
    await notes.store.perform(an_operation("claimed"), publishes("claimed"))
    with pytest.raises(asyncio.CancelledError):
        await notes.store.forward(be_killed)
    shortened = datetime.now(UTC) + timedelta(seconds=0.5)
    await inbox.replace_one({}, entries[0] | {"until": shortened})  # a kill cannot end the lease
    while_leased = await notes.store.forward(broker.publish)
    notes.store.committed.clear()
    async with relaying(notes, broker):
        await published(broker, 1)

    assert timedelta(seconds=1) < leases[0] <= timedelta(seconds=7)
    assert while_leased == 0
    assert datetime.now(UTC) > shortened


@pytest.mark.parametrize("notes", ["mongo"], indirect=True)
async def test_mongo_events_that_another_relay_claims_first_are_left_to_it(
    notes: Notes, mongo_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(notes.store, Mongo)
    broker, database = Broker(), notes.store.database
    other = {"claim": "another", "until": datetime.now(UTC) + timedelta(minutes=1)}

    def claim_first(size: int) -> str:  # called between query and claim
        with MongoClient[dict[str, Any]](mongo_url) as client:
            client[database.name]["inbox"].update_many({}, {"$set": other})
        return "x" * size

    await notes.store.perform(an_operation("claimed"), publishes("event"))
    monkeypatch.setattr("secrets.token_hex", claim_first)
    await notes.store.forward(broker.publish)

    [entry] = await database["inbox"].find().to_list()
    assert (broker.event_ids, entry["claim"]) == ([], "another")


async def test_events_stay_in_the_outbox_while_the_broker_is_unavailable(notes: Notes) -> None:
    broker = Broker()
    broker.unavailable = True
    ids = [f"{number:03}" for number in range(250)]
    await notes.store.perform(an_operation("unavailable"), publishes(*ids))

    async with relaying(notes, broker):
        async with asyncio.timeout(10):
            for _ in ids[:200]:  # two attempts with a hundred events each, or one with all of them
                await broker.failed.acquire()
        assert broker.event_ids == []
        broker.unavailable = False
        await published(broker, 250)

    assert sorted(broker.event_ids) == ids


async def test_concurrent_relays_publish_each_event_once(notes: Notes) -> None:
    broker = Broker()
    ids = [f"{number:03}" for number in range(500)]
    await notes.store.perform(an_operation("two"), publishes(*ids))

    async with relaying(notes, broker), relaying(notes, broker):
        await published(broker, 500)

    assert sorted(broker.event_ids) == ids


async def test_broker_receives_the_bytes_of_the_outbox(
    notes: Notes, vhost: str, unique: Unique
) -> None:
    type_, received = unique("postbus.test.v1.Event"), list[bytes]()
    all_received = asyncio.Event()
    newer = encode(Event(id="1", type=type_, subject="s", data=b"newer")) + UNKNOWN_FIELD
    await store_as_another_process(notes, {"1": newer})
    await notes.store.perform(an_operation("bytes"), publishes("2", "3", type_=type_))
    stored = await stored_events(notes)

    async def consume(body: bytes) -> None:
        received.append(body)
        if len(received) == len(stored):
            all_received.set()

    async with opened_bus(vhost) as bus:
        subscription = await bus.subscribe([type_], consume, queue=unique("queue."))
        while await notes.store.forward(bus.publish_encoded):
            pass
        async with asyncio.timeout(10):
            await all_received.wait()
        await subscription.cancel()

    assert stored[0] == newer
    assert received == stored


async def test_relay_publishes_a_backlog_without_a_further_commit(notes: Notes) -> None:
    broker = Broker()

    for number in range(350):
        operation = an_operation(f"one of many: {number}")
        await notes.store.perform(operation, publishes(f"{number:03}"))
    forwarded = await forward_all(notes, broker)

    assert forwarded == [100, 100, 100, 50]
    assert broker.event_ids == [f"{number:03}" for number in range(350)]


async def test_only_the_refused_event_is_published_again(notes: Notes) -> None:
    broker = Broker()
    broker.refused = {"3"}

    handler = publishes(*"01234")
    await notes.store.perform(an_operation("five events"), handler)
    assert await notes.store.forward(broker.publish) == 5
    assert broker.event_ids == ["0", "1", "2", "4"]
    broker.refused = set()
    assert await notes.store.forward(broker.publish) == 0  # it waits

    await forward_until(notes, broker, 5)
    assert broker.event_ids == ["0", "1", "2", "4", "3"]
    repeated = await notes.store.perform(an_operation("five events"), handler)
    assert (repeated.reply, repeated.replayed) == (b"done", True)
    assert await notes.store.forward(broker.publish) == 0


async def test_failure_of_the_connection_keeps_the_confirmed_events(notes: Notes) -> None:
    broker = Broker()

    async def lost_after_the_first(event: EncodedEvent) -> None:
        broker.unavailable = bool(broker.event_ids)
        await broker.publish(event)

    await notes.store.perform(an_operation("three events"), publishes(*"012"))
    with pytest.raises(ServiceError):
        await notes.store.forward(lost_after_the_first)
    broker.unavailable = False

    assert await notes.store.forward(broker.publish) == 2
    assert broker.event_ids == ["0", "1", "2"]


async def test_refused_events_do_not_delay_other_events(notes: Notes) -> None:
    broker = Broker()
    broker.refused = {f"{number:03}" for number in range(120)}

    for id_ in sorted(broker.refused):
        await notes.store.perform(an_operation(id_), publishes(id_, subject=id_))
    await notes.store.perform(an_operation("good"), publishes("good", subject="good"))

    assert [await notes.store.forward(broker.publish) for _ in range(3)] == [100, 21, 0]
    assert broker.event_ids == ["good"]


async def test_refused_event_holds_up_the_later_events_of_its_subject_only(notes: Notes) -> None:
    broker = Broker()
    broker.refused = {"1"}
    await notes.store.perform(an_operation("first"), publishes("0", "1", "2", subject="a"))
    await notes.store.forward(broker.publish)
    await notes.store.perform(an_operation("later"), publishes("3", subject="a"))
    await notes.store.perform(an_operation("other"), publishes("4", subject="b"))
    while await notes.store.forward(broker.publish):
        pass
    assert broker.event_ids == ["0", "4"]

    broker.refused = set()
    await forward_until(notes, broker, 5)

    assert broker.event_ids == ["0", "4", "1", "2", "3"]


async def test_delays_of_a_refused_event_grow_up_to_a_minute() -> None:
    delays = [retry_delay(attempts) for attempts in (0, 1, 2, 10, 10_000)]

    for delay, longest in zip(delays, (1, 2, 4, 60, 60), strict=True):
        assert longest / 2 <= delay <= longest
    assert len({retry_delay(3) for _ in range(20)}) > 1  # so that relays do not try at once


async def test_operations_with_many_events_are_published_in_bounded_batches(notes: Notes) -> None:
    broker = Broker()

    for number in range(6):
        events = publishes(*(f"{number} {each:02}" for each in range(30)))
        await notes.store.perform(an_operation(f"thirty events: {number}"), events)
    forwarded = await forward_all(notes, broker)

    assert max(forwarded) <= 130
    assert broker.event_ids == [f"{number} {each:02}" for number in range(6) for each in range(30)]


@pytest.mark.parametrize("notes", ["mongo"], indirect=True)
async def test_mongo_inbox_keeps_waiting_events_and_expires_finished_operations(
    notes: Notes,
) -> None:
    """The TTL index on `done_at` deletes finished operations a day later."""

    await notes.store.perform(an_operation("waits"), publishes("waits"))
    assert isinstance(notes.store, Mongo)
    inbox = notes.store.database["inbox"]
    [waiting] = await inbox.find().to_list()
    await notes.store.forward(Broker().publish)
    [done] = await inbox.find().to_list()
    indexes = await inbox.index_information()

    assert waiting.keys() == {"_id", "fingerprint", "reply", "events", "event_id", "until"}
    assert done.keys() == {"_id", "fingerprint", "reply", "done_at"}
    assert indexes["done_at_1"]["expireAfterSeconds"] == 24 * 60 * 60


async def recorded_sleeps(
    monkeypatch: pytest.MonkeyPatch, notes: Notes, broker: Broker, *, between: tuple[float, float]
) -> list[float]:
    """Run a relay; return eight sleeps `between` two numbers of seconds, which are left out.

    Other sleeps never end.
    """
    asked: list[float] = []
    complete, never, skip = asyncio.Event(), asyncio.Event(), asyncio.sleep

    async def sleep(seconds: float) -> None:
        if len(asked) == 8 or not between[0] <= seconds <= between[1]:
            await never.wait()
        asked.append(seconds)
        if len(asked) == 8:
            complete.set()
        await skip(0)

    hurried = SimpleNamespace(**{**vars(asyncio), "sleep": sleep})
    monkeypatch.setattr(relay_module, "asyncio", hurried)
    async with relaying(notes, broker), asyncio.timeout(10):
        await complete.wait()
    return asked


async def test_relay_waits_longer_after_each_failure_up_to_five_seconds(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker()
    broker.unavailable = True
    await notes.store.perform(an_operation("unavailable"), publishes("event"))

    delays = await recorded_sleeps(monkeypatch, notes, broker, between=(0, 100))

    longest = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    assert all(most / 2 <= delay <= most for delay, most in zip(delays, longest, strict=True))
    assert delays != longest  # the delays of several relays are spread


async def test_old_operations_are_purged_about_every_five_minutes_whatever_fails(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    purges: list[str] = []

    async def fail() -> None:
        purges.append("purge")
        raise ServiceError(reasons.DATABASE_UNAVAILABLE, "Unavailable.")

    monkeypatch.setattr(notes.store, "purge", fail)

    sleeps = await recorded_sleeps(monkeypatch, notes, Broker(), between=(100, 10**9))

    assert len(purges) >= 7
    assert all(150 <= seconds <= 300 for seconds in sleeps)
    assert len(set(sleeps)) > 1  # the purges of several processes are spread


async def test_flush_ends_after_a_second_and_leaves_the_events_in_the_outbox(notes: Notes) -> None:
    async def hang(_event: EncodedEvent) -> None:
        await asyncio.Event().wait()

    broker = Broker()
    await notes.store.perform(an_operation("hangs"), publishes("event"))

    async with asyncio.timeout(4):
        await flush(notes.store, hang)

    assert await forward_all(notes, broker) == [1]
    assert broker.event_ids == ["event"]


class ClaimCommands(CommandListener):
    """Records the read concerns of queries, and the write concerns of commits."""

    def __init__(self) -> None:
        self.read_concerns: list[Any] = []
        self.write_concerns: list[Any] = []

    def started(self, event: Any) -> None:
        if event.command_name == "find":
            self.read_concerns.append(event.command.get("readConcern", {}).get("level"))
        if event.command_name == "commitTransaction":
            self.write_concerns.append(event.command.get("writeConcern"))

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


async def test_mongo_relay_publishes_only_what_the_majority_has(
    mongo_url: str, unique: Unique
) -> None:
    url, sent, broker = httpx.URL(mongo_url), ClaimCommands(), Broker()
    own = str(url.copy_with(path=unique(f"{url.path}_")))
    async with AsyncMongoClient[dict[str, Any]](own, event_listeners=[sent]) as client:
        store = Mongo(client.get_default_database())
        await store.create_indexes()
        for _ in range(2):  # the second one is answered from the inbox
            await store.perform(an_operation("majority"), publishes("event"))
        sent.read_concerns.clear()
        await store.forward(broker.publish)
        await client.drop_database(client.get_default_database())

    assert sent.read_concerns == [None, "majority", None, None]
    assert sent.write_concerns == [{"w": "majority", "j": True}] * 2
    assert broker.event_ids == ["event"]
