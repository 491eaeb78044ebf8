"""How many handlers run at once; those that wait for another service do not count."""

import asyncio
from collections import deque
from contextlib import AbstractContextManager
from contextvars import ContextVar

__all__ = ["ConcurrencyLimit", "Slot", "current_slot"]


class ConcurrencyLimit:
    """Lets so many in at once; first come, first served. Who came in has to `leave`."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait to come in."""
        return len(self._waiting)

    def cancel_waiters(self) -> None:
        """Cancel all who wait."""
        for waiting in self._waiting:
            waiting.cancel()

    def try_acquire(self) -> bool:
        """Come in if there is room; False if one has to `wait`."""
        if self._free <= 0 or self._waiting:
            return False
        self._free -= 1
        _current.set(Slot(self))
        return True

    async def acquire(self) -> None:
        """Come in once there is room."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # let in and cancelled at once
                self.release()
            elif turn in self._waiting:  # else whoever left has passed it over
                self._waiting.remove(turn)
            raise
        _current.set(Slot(self))

    def release(self) -> None:
        """Make room for the next."""
        self._free += 1
        while self._free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._free -= 1
                turn.set_result(None)

    def reacquire(self) -> None:
        """Come in again, however many are inside."""
        self._free -= 1


class Slot(AbstractContextManager[None]):
    """A handler's slot. Inside the context it waits for others, and keeps none from running.

    Services that call each other can't so wait for each other's handlers for ever.
    """

    __slots__ = ("_calls", "_slots")

    def __init__(self, slots: ConcurrencyLimit) -> None:
        self._slots = slots
        self._calls = 0

    def __enter__(self) -> None:
        self._calls += 1
        if self._calls == 1:
            self._slots.release()

    def __exit__(self, *_error: object) -> None:
        self._calls -= 1
        if self._calls == 0:
            self._slots.reacquire()


_current: ContextVar[Slot | None] = ContextVar("postbus_slots", default=None)


def current_slot() -> Slot | None:
    """Return the seat of the handler that this is called by, if it is one."""
    return _current.get()
