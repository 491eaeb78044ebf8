"""Author cards in memory, so that a page of posts is one question to the database."""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog

from postbus.bus.v1 import Event
from postbus.registry import EVENTS
from postbus.users.v1 import UserDeleted, UserProfileUpdated
from posts.authors import card_of, gone
from posts.models import Author
from shared.bus import MessageBus
from shared.errors import ServiceError
from shared.wire import decode

__all__ = ["CardCache"]

_log = structlog.get_logger()

_TYPES: Final = [
    name for name, event in EVENTS.items() if event.message in (UserProfileUpdated, UserDeleted)
]
_MOST: Final = 20_000
"""Cards, of less than a kilobyte each; the one not asked for longest is forgotten first."""
_SECONDS: Final = 60.0
"""Until a card is read again: of a change before this process listened it may not have heard."""


class CardCache:
    """What was read of authors, and what was heard of them since.

    Each process hears of changes itself, about when the database does. `clock` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._cards: OrderedDict[str, tuple[float, Author]] = OrderedDict()

    @asynccontextmanager
    async def hearing(self, bus: MessageBus) -> AsyncIterator[None]:
        """Hear of changes meanwhile, from the moment that the broker is there."""
        subscription = await bus.subscribe(_TYPES, self._hear, on_gap=self._cards.clear)
        try:
            yield
        finally:
            await subscription.cancel()

    def of(self, ids: Iterable[str]) -> dict[str, Author]:
        """Return the cards that are here, by id."""
        now, found = self._clock(), {}
        for id_ in ids:
            kept = self._cards.get(id_)
            if kept is not None and kept[0] > now:
                self._cards.move_to_end(id_)
                found[id_] = kept[1]
        return found

    def keep(self, cards: Iterable[Author]) -> None:
        """Keep cards, unless later ones are here."""
        now = self._clock()
        for card in cards:
            kept = self._cards.get(card.id)
            if kept is None or kept[0] <= now or _age(kept[1]) <= _age(card):
                self._cards[card.id] = now + _SECONDS, card
                self._cards.move_to_end(card.id)
        while len(self._cards) > _MOST:
            self._cards.popitem(last=False)

    async def _hear(self, body: bytes) -> None:
        try:
            event = decode(Event, body)
            if event.type not in _TYPES:  # it came under the routing key of another
                return
            changed: Any = decode(EVENTS[event.type].message, event.data)
        except ServiceError:
            _log.warning("event.malformed")
            return
        id_ = changed.user_id
        self.keep([gone(id_) if isinstance(changed, UserDeleted) else card_of(id_, changed)])


def _age(card: Author) -> tuple[bool, int]:
    return card.deleted, card.version
