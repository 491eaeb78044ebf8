"""Events on their way from the bus to WebSockets."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from gateway.events import EventFeed
from gateway.transcoding import Document
from postbus.bus.v1 import Event
from shared.messagebus.memory import MemoryBus
from shared.wire import message_class

TYPE = "postbus.posts.v1.PostCreated"


async def test_an_event_that_json_cannot_say_stops_no_other() -> None:
    bus, heard = MemoryBus(), asyncio.Queue[Document]()
    feed = EventFeed(bus)
    await feed.run()
    feed.listen(TYPE, heard.put_nowait, user_id="alice")
    hostile: Any = message_class(TYPE)()
    hostile.post.created_at.nanos = 2_000_000_000

    for id_, data in (("hostile", hostile.SerializeToString()), ("next", b"")):
        time = datetime(2026, 1, 2, tzinfo=UTC)
        await bus.publish(Event(id=id_, type=TYPE, time=time, data=data))

    async with asyncio.timeout(5):
        delivery = await heard.get()
    assert delivery["eventId"] == "next"
