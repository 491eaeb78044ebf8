"""Deadlines of a connection, with one timer that is rarely set.

Each request moves the deadlines several times. This only stores a number: the timer is set again
only if the new deadline is earlier than the timer.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Final

__all__ = ["NEVER", "Deadlines"]

NEVER: Final = math.inf


class Deadlines:
    """Two deadlines by the event loop's clock: `reading` and `writing`."""

    __slots__ = ("_expired", "_loop", "_timer", "_timer_at", "reading", "writing")

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[], None]) -> None:
        """Call `expired` once a deadline has passed; `expired` must set a later deadline."""
        self.reading = NEVER
        self.writing = NEVER
        self._loop = loop
        self._expired = expired
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER

    def read_within(self, seconds: float) -> None:
        """Set the deadline for reading, from now."""
        self.reading = self._loop.time() + seconds
        if self.reading < self._timer_at:
            self._set_timer(self.reading)

    def read_until(self, deadline: float) -> None:
        """Set the deadline for reading, by the loop's clock."""
        self.reading = deadline
        if deadline < self._timer_at:
            self._set_timer(deadline)

    def write_within(self, seconds: float) -> None:
        """Set the deadline for writing, from now."""
        self.writing = self._loop.time() + seconds
        if self.writing < self._timer_at:
            self._set_timer(self.writing)

    def cancel(self) -> None:
        """Stop the timer, and remove both deadlines."""
        self.reading = self.writing = NEVER
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._check)

    def _check(self) -> None:
        self._timer, self._timer_at = None, NEVER
        if min(self.reading, self.writing) <= self._loop.time():
            self._expired()
        earliest = min(self.reading, self.writing)
        if earliest < self._timer_at:
            self._set_timer(earliest)
