"""Messages and queues of the service `test`, published and declared without its bus.

The workers of the system reply to their callers only, of which `operator` is one.
"""

import secrets
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue

__all__ = ["CALLS", "CONTROL", "EVENTS", "REPLIES", "message", "reply_queue"]

CALLS = "postbus.calls.test"
CONTROL = "postbus.control.test"
EVENTS = "postbus.events.test"
REPLIES = "postbus.replies.test"


def message(body: bytes, service: str = "test", **properties: Any) -> aio_pika.Message:
    """Return a message whose sender is a service."""
    return aio_pika.Message(body, user_id=service, **properties)


async def reply_queue(channel: AbstractChannel, service: str = "test") -> AbstractQueue:
    """Declare a queue to which servers can reply."""
    name = f"{service}.replies.{secrets.token_hex(8)}"
    queue = await channel.declare_queue(name, exclusive=True)
    await queue.bind(f"postbus.replies.{service}", name)
    return queue
