"""Delivery of events from the bus to WebSockets."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway import event_subscriptions
from gateway.event_subscriptions import EventSubscriptions
from postbus.bus.v1 import Event
from shared.bus.memory import MemoryBus
from shared.errors import ServiceError
from shared.wire import encode, message_class

TYPE = "postbus.posts.v1.PostDeleted"
OTHER_TYPE = "postbus.posts.v1.PostCreated"


class Listener:
    """Records its deliveries."""

    def __init__(self) -> None:
        self.deliveries: asyncio.Queue[bytes] = asyncio.Queue()
        self.interrupted = asyncio.Event()

    def deliver(self, delivery: bytes) -> None:
        self.deliveries.put_nowait(delivery)

    def interrupt(self) -> None:
        self.interrupted.set()

    async def next_id(self) -> str:
        async with asyncio.timeout(5):
            event: dict[str, str] = json.loads(await self.deliveries.get())
        return event["eventId"]


def event(id_: str, type_: str = TYPE, data: bytes = b"") -> Event:
    return Event(id=id_, type=type_, time=datetime(2026, 1, 2, tzinfo=UTC), data=data)


async def running_subscriptions(bus: MemoryBus) -> EventSubscriptions:
    subscriptions = EventSubscriptions(bus)
    await subscriptions.run()
    return subscriptions


async def test_event_without_a_json_form_does_not_stop_later_events() -> None:
    bus, listener = MemoryBus(), Listener()
    subscriptions = await running_subscriptions(bus)
    subscriptions.subscribe(OTHER_TYPE, listener, user_id="alice")
    hostile: Any = message_class(OTHER_TYPE)()
    hostile.post.created_at.nanos = 2_000_000_000

    await bus.publish(event("hostile", OTHER_TYPE, hostile.SerializeToString()))
    await bus.publish(event("next", OTHER_TYPE))

    assert await listener.next_id() == "next"


async def test_flood_of_malformed_events_writes_one_line() -> None:
    bus, listener = MemoryBus(), Listener()
    subscriptions = await running_subscriptions(bus)
    subscriptions.subscribe(TYPE, listener, user_id="alice")

    with capture_logs() as lines:
        for _ in range(20):
            await bus.publish(event("malformed", TYPE, b"\xff"))
        await bus.publish(event("next", TYPE))
        assert await listener.next_id() == "next"

    assert [line["event"] for line in lines] == ["event.malformed"]


async def test_flood_of_events_without_a_json_form_writes_one_line_of_each_event() -> None:
    bus, listener = MemoryBus(), Listener()
    subscriptions = await running_subscriptions(bus)
    subscriptions.subscribe(OTHER_TYPE, listener, user_id="alice")
    hostile: Any = message_class("postbus.posts.v1.PostCreated")()
    hostile.post.created_at.nanos = 2_000_000_000

    with capture_logs() as lines:
        for _ in range(20):
            await bus.publish(event("hostile", OTHER_TYPE, hostile.SerializeToString()))
        await bus.publish(event("next", OTHER_TYPE))
        assert await listener.next_id() == "next"

    assert len(lines) <= 2
    assert {line["event"] for line in lines} <= {"message.not_json", "event.malformed"}


async def test_event_is_written_to_json_once_for_all_listeners() -> None:
    bus, listeners = MemoryBus(), [Listener() for _ in range(3)]
    subscriptions = await running_subscriptions(bus)
    for listener in listeners:
        subscriptions.subscribe(TYPE, listener, user_id="alice")

    await bus.publish(event("e"))

    async with asyncio.timeout(5):
        deliveries = [await listener.deliveries.get() for listener in listeners]
    assert json.loads(deliveries[0])["eventId"] == "e"
    assert deliveries[1] is deliveries[0]
    assert deliveries[2] is deliveries[0]


async def test_event_without_listeners_is_not_written_to_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []

    def write(event: Any, _data: Any) -> bytes:
        written.append(event.id)
        return b""

    monkeypatch.setattr(event_subscriptions, "_delivery", write)
    bus, listener = MemoryBus(), Listener()
    subscriptions = await running_subscriptions(bus)
    subscriptions.subscribe(OTHER_TYPE, listener, user_id="alice")

    await bus.publish(event("of no use"))
    await bus.publish(event("wanted", OTHER_TYPE))

    async with asyncio.timeout(5):
        await listener.deliveries.get()
    assert written == ["wanted"]


def test_subscription_before_the_feed_receives_events_is_refused() -> None:
    subscriptions = EventSubscriptions(MemoryBus())

    with pytest.raises(ServiceError, match="EVENTS_UNAVAILABLE"):
        subscriptions.subscribe(TYPE, Listener(), user_id="alice")


async def test_ended_subscriptions_hold_no_memory() -> None:
    bus, listener = MemoryBus(), Listener()
    subscriptions = await running_subscriptions(bus)

    subscriptions.subscribe(TYPE, listener, user_id="alice")
    subscriptions.unsubscribe(listener)

    assert (len(subscriptions), len(subscriptions._listeners)) == (0, 0)


async def test_event_under_the_routing_key_of_another_type_is_ignored() -> None:
    bus, listener = MemoryBus(), Listener()
    subscriptions = await running_subscriptions(bus)
    subscriptions.subscribe(TYPE, listener, user_id="alice")

    await subscriptions._on_event(encode(event("internal", "postbus.users.v1.SessionRevoked")))
    await bus.publish(event("next"))

    assert await listener.next_id() == "next"


async def test_other_tasks_run_during_the_delivery_to_many_listeners() -> None:
    bus, listeners = MemoryBus(), [Listener() for _ in range(1000)]
    subscriptions = await running_subscriptions(bus)
    for listener in listeners:
        subscriptions.subscribe(TYPE, listener, user_id="alice")

    await bus.publish(event("e"))
    async with asyncio.timeout(5):
        while listeners[0].deliveries.empty():  # noqa: ASYNC110  # each turn counts
            await asyncio.sleep(0)

    delivered = sum(not listener.deliveries.empty() for listener in listeners)
    assert delivered <= 200


async def test_events_of_different_types_keep_their_order_during_slices() -> None:
    bus, listeners = MemoryBus(), [Listener() for _ in range(250)]
    subscriptions = await running_subscriptions(bus)
    for listener in listeners:
        subscriptions.subscribe(TYPE, listener, user_id="alice")
    subscriptions.subscribe(OTHER_TYPE, listeners[-1], user_id="alice")
    bodies = [encode(event("first")), encode(event("second", OTHER_TYPE))]

    await asyncio.gather(*(subscriptions._on_event(body) for body in bodies))

    assert [await listeners[-1].next_id() for _ in bodies] == ["first", "second"]


async def test_listener_that_unsubscribes_during_a_delivery_gets_no_further_event() -> None:
    bus, listeners = MemoryBus(), [Listener() for _ in range(150)]
    subscriptions = await running_subscriptions(bus)
    for listener in listeners:
        subscriptions.subscribe(TYPE, listener, user_id="alice")

    await bus.publish(event("e"))
    async with asyncio.timeout(5):
        await listeners[0].deliveries.get()
    subscriptions.unsubscribe(listeners[-1])
    await listeners[-2].next_id()

    assert listeners[-1].deliveries.empty()
    assert len(subscriptions) == 149
