"""Subscriptions to events with decoded messages."""

import structlog.testing

from postbus.bus.v1 import Event
from postbus.users.v1 import UserDeleted, UserRegistered
from shared.bus import typed_handler
from shared.bus.memory import MemoryBus
from shared.wire import encode

DELETED = "postbus.users.v1.UserDeleted"
REGISTERED = "postbus.users.v1.UserRegistered"


async def test_handler_gets_the_decoded_messages_of_its_events() -> None:
    bus, handled = MemoryBus(), list[UserDeleted]()
    types, handler = typed_handler(handled.append, [UserDeleted])
    subscription = await bus.read_stream("stream", types, handler, seconds=60)

    for name, message in ((DELETED, UserDeleted(user_id="1")), (REGISTERED, UserRegistered())):
        await bus.publish(Event(type=name, data=encode(message)))
    again = await bus.read_stream("stream", types, handler, seconds=60)

    assert types == [DELETED]
    assert handled == [UserDeleted(user_id="1")] * 2
    await subscription.cancel()
    await again.cancel()


async def test_malformed_event_is_logged_and_dropped() -> None:
    handled = list[UserDeleted]()
    _, handler = typed_handler(handled.append, [UserDeleted])
    malformed = [
        b"\xff",
        encode(Event(type=DELETED, data=b"\xff")),
        encode(Event(type=REGISTERED, data=encode(UserRegistered(user_id="1")))),
    ]

    with structlog.testing.capture_logs() as lines:
        failures = [await handler(body) for body in malformed]

    assert failures == [None] * 3
    assert [line["event"] for line in lines] == ["event.malformed"]  # of all three
    assert handled == []
