"""Pass the events of the bus to the WebSockets that subscribe to them."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from typing import Any, Final, Protocol

import orjson

from postbus import reasons
from postbus.registry import EVENTS, Access
from shared.bus import MessageBus
from shared.bus.call_errors import unavailable
from shared.errors import ServiceError
from shared.limited_log import LimitedLog
from shared.protojson import packed, write_message
from shared.wire import message_class, parse, parse_as

__all__ = ["CLIENT_EVENTS", "EventSubscriptions", "Listener"]

_Event: Any = message_class("postbus.bus.v1.Event")
_SLICE: Final = 100
"""Listeners that get an event before other tasks run; with the writing, this takes about 1 ms."""

_Key = tuple[str, str]
"""Type of an event, and id of its recipient; empty if all users may receive it."""

CLIENT_EVENTS: Final = {
    name: event for name, event in EVENTS.items() if event.access is not Access.INTERNAL
}
"""Events that clients may subscribe to."""


class Listener(Protocol):
    """A subscription of one client. Its methods do not block and never raise."""

    def deliver(self, delivery: bytes) -> None:
        """Receive an event: a Delivery in JSON."""

    def interrupt(self) -> None:
        """End the subscription: events may have been missed."""


class EventSubscriptions:
    """The subscriptions of all clients; `run` subscribes to the bus, on one queue per process.

    Each listener gets the events in the order in which the broker delivers them.
    """

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._active = False
        self._log = LimitedLog()
        self._delivery_lock = asyncio.Lock()
        self._interruptions: set[asyncio.Task[None]] = set()
        self._listeners: defaultdict[_Key, dict[Listener, None]] = defaultdict(dict)
        self._keys: defaultdict[Listener, set[_Key]] = defaultdict(set)

    async def run(self) -> None:
        """Subscribe to all client-visible events; return once the broker has confirmed it."""
        await self._bus.subscribe(list(CLIENT_EVENTS), self._on_event, on_gap=self._interrupt)
        self._active = True

    def __len__(self) -> int:
        """Return the number of listeners."""
        return len(self._keys)

    def subscribe(self, event_type: str, listener: Listener, *, user_id: str) -> None:
        """Pass the events of a type in CLIENT_EVENTS to `listener`, until the next gap.

        If each event of the type has one recipient, only events for `user_id` are passed.
        UNAVAILABLE with reason EVENTS_UNAVAILABLE while the bus delivers no events.
        """
        if not (self._active and self._bus.ready):
            raise unavailable(reasons.EVENTS_UNAVAILABLE, "Events are unavailable at the moment.")
        key = event_type, user_id if CLIENT_EVENTS[event_type].recipient else ""
        self._listeners[key][listener] = None
        self._keys[listener].add(key)

    def unsubscribe(self, listener: Listener) -> None:
        """Pass no further events to `listener`."""
        for key in self._keys.pop(listener, ()):
            del self._listeners[key][listener]
            if not self._listeners[key]:
                del self._listeners[key]

    async def _on_event(self, body: bytes) -> None:
        async with self._delivery_lock:  # keeps the order: the bus runs handlers concurrently
            try:
                event = parse_as(_Event, body)
                key, data = _key_and_data(event)
                if key not in self._listeners:
                    return
                delivery = _delivery(event, data)
            except ServiceError:
                self._log.write(logging.WARNING, "event.malformed")
                return
            async for listener in self._in_slices(self._listeners[key]):
                listener.deliver(delivery)

    async def _in_slices(self, listeners: Iterable[Listener]) -> AsyncGenerator[Listener, None]:
        """Yield the listeners that are still subscribed; let other tasks run after each slice."""
        for number, listener in enumerate(tuple(listeners), 1):
            if listener in self._keys:
                yield listener
            if number % _SLICE == 0:
                await asyncio.sleep(0)

    def _interrupt(self) -> None:
        task = asyncio.create_task(self._interrupt_all(tuple(self._keys)))
        self._interruptions.add(task)
        task.add_done_callback(self._interruptions.discard)

    async def _interrupt_all(self, listeners: Iterable[Listener]) -> None:
        async for listener in self._in_slices(listeners):
            listener.interrupt()


def _key_and_data(event: Any) -> tuple[_Key, Any]:
    """Return the key of an event's listeners, and its message.

    The key is empty, and has no listeners, for an event that clients may not receive.
    """
    event_type = CLIENT_EVENTS.get(event.type)
    if event_type is None:  # published under the routing key of another type
        return ("", ""), None
    data: Any = parse(event.type, event.data)
    return (event.type, getattr(data, event_type.recipient) if event_type.recipient else ""), data


def _delivery(event: Any, data: Any) -> bytes:
    return orjson.dumps(
        {
            "eventId": event.id,
            "subject": event.subject,
            "time": write_message(event.time),
            "data": packed(data),
        }
    )
