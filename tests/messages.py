"""Messages and queues of the service `test`, published and declared without its bus.

The workers of the system reply to their callers only, of which `operator` is one.
"""

import asyncio
import secrets
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue

from postbus.bus.v1 import Event
from shared.bus import MessageBus
from shared.errors import ServiceError

__all__ = [
    "CALLS",
    "CONTROL",
    "EVENTS",
    "REPLIES",
    "message",
    "publish_until_routed",
    "reply_queue",
]

CALLS = "postbus.calls.test"
CONTROL = "postbus.control.test"
EVENTS = "postbus.events.test"
REPLIES = "postbus.replies.test"


def message(body: bytes, service: str = "test", **properties: Any) -> aio_pika.Message:
    """Return a message of a service."""
    return aio_pika.Message(body, user_id=service, **properties)


async def reply_queue(channel: AbstractChannel, service: str = "test") -> AbstractQueue:
    """Declare a queue to which servers can reply."""
    name = f"{service}.replies.{secrets.token_hex(8)}"
    queue = await channel.declare_queue(name, exclusive=True)
    await queue.bind(f"postbus.replies.{service}", name)
    return queue


async def publish_until_routed(bus: MessageBus, event: Event) -> None:
    """Publish an event as a relay does: again until a queue takes it."""
    async with asyncio.timeout(15):
        while True:
            try:
                await bus.publish(event)
            except ServiceError as error:
                if error.reason != "EVENT_UNROUTED":
                    raise
                await asyncio.sleep(0.05)
            else:
                return
