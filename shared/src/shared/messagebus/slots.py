"""How many handlers run at once; those that wait for another service do not count."""

import asyncio
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Final

__all__ = ["Slots", "outside_slot"]


class Slots:
    """An async context manager of which so many can be inside at once; first come, first served."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait to come in."""
        return len(self._waiting)

    def turn_away(self) -> None:
        """Cancel all who wait."""
        for waiting in self._waiting:
            waiting.cancel()

    async def __aenter__(self) -> None:
        if self._free > 0 and not self._waiting:
            self._free -= 1
        else:
            await self._wait()
        _current.set(_Seat(self))

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove(turn)
            else:  # let in and cancelled at once
                self.leave()
            raise

    async def __aexit__(self, *_error: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Make room for the next."""
        self._free += 1
        while self._free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._free -= 1
                turn.set_result(None)

    def return_(self) -> None:
        """Come in again, however many are inside."""
        self._free -= 1


class _Seat(AbstractContextManager[None]):
    """A slot, and how many calls of its handler are waited for."""

    __slots__ = ("_calls", "_slots")

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._calls = 0

    def __enter__(self) -> None:
        self._calls += 1
        if self._calls == 1:
            self._slots.leave()

    def __exit__(self, *_error: object) -> None:
        self._calls -= 1
        if self._calls == 0:
            self._slots.return_()


_current: ContextVar[_Seat | None] = ContextVar("postbus_slots", default=None)


def outside_slot() -> AbstractContextManager[None]:
    """Wait for something else without keeping others from running.

    Services that call each other can't so wait for each other's handlers for ever.
    """
    return _current.get() or _NOWHERE


_NOWHERE: Final = nullcontext()
