"""Events of the bus, handed to every WebSocket that asked for them."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import structlog

from gateway.transcoding import Document, to_json
from postbus.bus.v1 import Event
from postbus.registry import EVENTS
from shared.errors import ServiceError
from shared.messagebus import MessageBus
from shared.messagebus.envelope import unavailable
from shared.wire import decode, message_class, parse

__all__ = ["EventFeed", "Listener"]

_log = structlog.get_logger()

Listener = Callable[[Document], None]
"""Takes an event as a Delivery in JSON, at once; never waits, never raises."""


class EventFeed:
    """One queue for all events, of this process; `run` fills it from the bus.

    `gap` is set, and replaced by a new one, when listeners may have missed events.
    """

    def __init__(self, bus: MessageBus) -> None:
        self.gap = asyncio.Event()
        self._bus = bus
        self._active = False
        self._listeners: defaultdict[str, set[Listener]] = defaultdict(set)

    async def run(self) -> None:
        """Begin to hear of events, once the broker is there."""
        await self._bus.subscribe(list(EVENTS), self._deliver, on_gap=self._tell_of_gap)
        self._active = True

    def _tell_of_gap(self) -> None:
        self.gap.set()
        self.gap = asyncio.Event()

    def listen(self, event_type: str, listener: Listener) -> None:
        """Pass every event of a type to `listener` until the next gap; UNAVAILABLE if none come."""
        if not (self._active and self._bus.ready):
            raise unavailable("EVENTS_UNAVAILABLE", "Events can't be heard at the moment.")
        self._listeners[event_type].add(listener)

    def ignore(self, listener: Listener) -> None:
        """Pass nothing more to `listener`."""
        for listeners in self._listeners.values():
            listeners.discard(listener)

    async def _deliver(self, body: bytes) -> None:
        try:
            event = decode(Event, body)
            if not self._listeners.get(event.type):
                return
            delivery = _delivery(event)
        except ServiceError:
            _log.warning("event.malformed")
            return
        for listener in tuple(self._listeners[event.type]):
            listener(delivery)


def _delivery(event: Event) -> Document:
    delivery: Any = message_class("postbus.realtime.v1.Delivery")(
        event_id=event.id, subject=event.subject
    )
    delivery.time.FromDatetime(event.time)
    delivery.data.Pack(parse(event.type, event.data))
    return to_json(delivery)
