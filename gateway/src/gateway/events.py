"""Events of the bus, handed to every WebSocket that asked for them."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

import structlog

from gateway.transcoding import Document, to_json
from postbus.bus.v1 import Event
from postbus.registry import EVENTS, Access
from shared.errors import ServiceError
from shared.messagebus import MessageBus
from shared.messagebus.envelope import unavailable
from shared.wire import decode, message_class, parse

__all__ = ["CLIENT_EVENTS", "EventFeed", "Listener"]

_log = structlog.get_logger()

_Key = tuple[str, str]
"""Type of an event, and id of the user whom it is for; empty if it is for everyone."""

Listener = Callable[[Document], None]
"""Takes an event as a Delivery in JSON, at once; never waits, never raises."""


CLIENT_EVENTS: Final = {
    name: event for name, event in EVENTS.items() if event.access is not Access.INTERNAL
}
"""Those that clients may hear of."""


class EventFeed:
    """One queue for all events of clients, of this process; `run` fills it from the bus.

    `gap` is set, and replaced by a new one, when listeners may have missed events.
    """

    def __init__(self, bus: MessageBus) -> None:
        self.gap = asyncio.Event()
        self._bus = bus
        self._active = False
        self._listeners: defaultdict[_Key, set[Listener]] = defaultdict(set)
        self._keys: defaultdict[Listener, set[_Key]] = defaultdict(set)

    async def run(self) -> None:
        """Begin to hear of events, once the broker is there."""
        await self._bus.subscribe(list(CLIENT_EVENTS), self._deliver, on_gap=self._tell_of_gap)
        self._active = True

    def _tell_of_gap(self) -> None:
        self.gap.set()
        self.gap = asyncio.Event()

    def listen(self, event_type: str, listener: Listener, *, user_id: str) -> None:
        """Pass every event of a type to `listener` until the next gap; UNAVAILABLE if none come.

        The type is one of CLIENT_EVENTS. If its events are for one user each, those for `user_id`
        are passed.
        """
        if not (self._active and self._bus.ready):
            raise unavailable("EVENTS_UNAVAILABLE", "Events can't be heard at the moment.")
        key = event_type, user_id if CLIENT_EVENTS[event_type].recipient else ""
        self._listeners[key].add(listener)
        self._keys[listener].add(key)

    def ignore(self, listener: Listener) -> None:
        """Pass nothing more to `listener`."""
        for key in self._keys.pop(listener, ()):
            self._listeners[key].discard(listener)
            if not self._listeners[key]:
                del self._listeners[key]

    async def _deliver(self, body: bytes) -> None:
        try:
            event = decode(Event, body)
            listeners = self._listeners_of(event)
            if not listeners:
                return
            delivery = _delivery(event)
        except ServiceError:
            _log.warning("event.malformed")
            return
        for listener in tuple(listeners):
            listener(delivery)

    def _listeners_of(self, event: Event) -> set[Listener]:
        known = CLIENT_EVENTS.get(event.type)
        if known is None:  # it came under the routing key of another
            return set()
        user_id = ""
        if known.recipient:
            user_id = getattr(parse(event.type, event.data), known.recipient)
        return self._listeners.get((event.type, user_id), set())


def _delivery(event: Event) -> Document:
    delivery: Any = message_class("postbus.realtime.v1.Delivery")(
        event_id=event.id, subject=event.subject
    )
    delivery.time.FromDatetime(event.time)
    delivery.data.Pack(parse(event.type, event.data))
    document: Document = to_json(delivery)
    return document
