"""A cache of authors in memory, so that a page of posts takes one query."""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from typing import Final

from postbus.users.v1 import UserDeleted, UserProfileUpdated
from posts.models import Author
from shared.bus import MessageBus, typed_handler

__all__ = ["AuthorCache"]

_EVENTS: Final[Collection[type[UserProfileUpdated | UserDeleted]]] = (
    UserProfileUpdated,
    UserDeleted,
)
_MAX_AUTHORS: Final = 20_000
"""Maximum size, at less than a kilobyte per author. The least recently used is evicted first."""
_TTL: Final = 60.0
"""Seconds until an author is read again: earlier events than the subscription were missed."""


class AuthorCache:
    """Recently read authors, updated by the events of `users`.

    Each process has its own subscription, which gets an event about as soon as the database does.
    `clock` returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, Author]] = OrderedDict()

    @asynccontextmanager
    async def subscribed(self, bus: MessageBus) -> AsyncIterator[None]:
        """Update the cache by events while the context is open."""
        types, handler = typed_handler(self._on_change, _EVENTS)
        subscription = await bus.subscribe(types, handler, on_gap=self._entries.clear)
        try:
            yield
        finally:
            await subscription.cancel()

    def get_many(self, ids: Iterable[str]) -> dict[str, Author]:
        """Return the cached authors and tombstones by id."""
        now, found = self._clock(), {}
        for id_ in ids:
            entry = self._entries.get(id_)
            if entry is not None and entry[0] > now:
                self._entries.move_to_end(id_)
                found[id_] = entry[1]
        return found

    def put(self, authors: Iterable[Author]) -> None:
        """Cache authors, except where a newer version is cached."""
        now = self._clock()
        for author in authors:
            entry = self._entries.get(author.id)
            if entry is None or entry[0] <= now or _version(entry[1]) <= _version(author):
                self._entries[author.id] = now + _TTL, author
                self._entries.move_to_end(author.id)
        while len(self._entries) > _MAX_AUTHORS:
            self._entries.popitem(last=False)

    def _on_change(self, event: UserProfileUpdated | UserDeleted) -> None:
        if isinstance(event, UserDeleted):
            self.put([Author.tombstone(event.user_id)])
        else:
            self.put([Author.from_message(event.user_id, event)])


def _version(author: Author) -> tuple[bool, int]:
    """Return a key that orders versions; a tombstone is the newest."""
    return author.deleted, author.version
