"""Events on their way from real databases to the broker: each once its change is committed."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from shared.data.mongo_database import Mongo
from shared.errors import ServiceError
from shared.outbox.relay import relay
from tests.notes import Broker, Notes, an_operation, publish


def publishes(*ids: str) -> Callable[[], Awaitable[bytes]]:
    """Return a handler that publishes events."""

    async def handler() -> bytes:
        for id_ in ids:
            publish(id_)
        return b"done"

    return handler


async def forward_all(notes: Notes, broker: Broker) -> list[int]:
    """Forward what waits; return how many events each time."""
    forwarded = []
    while count := await notes.store.forward(broker.publish):
        forwarded.append(count)
    return forwarded


async def stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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


async def test_many_events_leave_though_no_commit_follows(notes: Notes) -> None:
    broker = Broker()

    for number in range(350):
        operation = an_operation(f"one of many: {number}")
        await notes.store.perform(operation, publishes(f"{number:03}"))
    forwarded = await forward_all(notes, broker)

    assert forwarded == [100, 100, 100, 50]
    assert broker.has == [f"{number:03}" for number in range(350)]


async def test_events_of_an_operation_leave_in_order_and_only_those_that_have_not(
    notes: Notes,
) -> None:
    broker = Broker()
    broker.refused = {"3"}

    handler = publishes(*"01234")
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

    for number in range(6):
        events = publishes(*(f"{number} {each:02}" for each in range(30)))
        await notes.store.perform(an_operation(f"thirty events: {number}"), events)
    forwarded = await forward_all(notes, broker)

    assert max(forwarded) <= 130
    assert broker.has == [f"{number} {each:02}" for number in range(6) for each in range(30)]


@pytest.mark.parametrize("notes", ["mongo"], indirect=True)
async def test_mongo_keeps_what_waits_and_forgets_what_is_done(
    notes: Notes,
) -> None:
    """Its index on `done_at` deletes a day later."""

    await notes.store.perform(an_operation("waits"), publishes("waits"))
    assert isinstance(notes.store, Mongo)
    inbox = notes.store.database["inbox"]
    [waiting] = await inbox.find().to_list()
    await notes.store.forward(Broker().publish)
    [done] = await inbox.find().to_list()

    assert waiting.keys() == {"_id", "fingerprint", "reply", "events", "event_id", "until"}
    assert done.keys() == {"_id", "fingerprint", "reply", "done_at"}
