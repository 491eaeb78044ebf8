"""Messages and queues of the service `test`, published and declared without its bus."""

import secrets
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue

__all__ = ["CALLS", "CONTROL", "EVENTS", "REPLIES", "message", "reply_queue"]

CALLS = "postbus.calls.test"
CONTROL = "postbus.control.test"
EVENTS = "postbus.events.test"
REPLIES = "postbus.replies.test"


def message(body: bytes, **properties: Any) -> aio_pika.Message:
    """Return a message whose sender is the service `test`."""
    return aio_pika.Message(body, user_id="test", **properties)


async def reply_queue(channel: AbstractChannel) -> AbstractQueue:
    """Declare a queue to which servers can reply."""
    name = f"test.replies.{secrets.token_hex(8)}"
    queue = await channel.declare_queue(name, exclusive=True)
    await queue.bind(REPLIES, name)
    return queue
