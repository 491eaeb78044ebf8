"""The limit on running handlers. Handlers that await a nested call do not count."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Final

__all__ = ["ConcurrencyLimit", "current_slot"]


class ConcurrencyLimit:
    """Limits the number of acquired slots to `limit`, in the order of the requests.

    A handler acquires a slot before it runs, and has to release it.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Number of handlers that wait for a slot."""
        return len(self._waiting)

    def cancel_waiters(self) -> None:
        """Cancel the handlers that wait for a slot."""
        for waiting in self._waiting:
            waiting.cancel()

    def try_acquire(self) -> bool:
        """Acquire a slot without waiting. Return False if none is free or other handlers wait."""
        if self._free <= 0 or self._waiting:
            return False
        self._free -= 1
        _current.set(Slot(self))
        return True

    async def acquire(self) -> None:
        """Wait for a slot and acquire it."""
        acquired: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(acquired)
        try:
            await acquired
        except asyncio.CancelledError:
            if not acquired.cancelled():  # acquired and cancelled in the same tick
                self.release()
            elif acquired in self._waiting:  # else `release` has removed it
                self._waiting.remove(acquired)
            raise
        _current.set(Slot(self))

    def release(self) -> None:
        """Free a slot, for the handler that has waited longest."""
        self._free += 1
        while self._free > 0 and self._waiting:
            acquired = self._waiting.popleft()
            if not acquired.done():
                self._free -= 1
                acquired.set_result(None)

    def reacquire(self) -> None:
        """Acquire a slot again, even beyond the limit."""
        self._free -= 1


class Slot(AbstractContextManager[None]):
    """The slot of a running handler. Inside the context the slot is free for other handlers, so
    that services that call each other cannot deadlock.
    """

    __slots__ = ("_calls", "_limit")

    def __init__(self, limit: ConcurrencyLimit) -> None:
        self._limit = limit
        self._calls = 0

    def __enter__(self) -> None:
        self._calls += 1
        if self._calls == 1:
            self._limit.release()

    def __exit__(self, *_error: object) -> None:
        self._calls -= 1
        if self._calls == 0:
            self._limit.reacquire()


_current: ContextVar[Slot | None] = ContextVar("postbus_slot", default=None)

current_slot: Final[Callable[[], Slot | None]] = _current.get
"""Returns the slot of the running handler, None outside a handler."""
