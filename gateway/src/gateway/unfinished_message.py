"""The bounds on the bytes and the time of a WebSocket message of which a part has arrived."""

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["UnfinishedMessage"]

_MESSAGE_SECONDS: Final = 30.0
"""Time from the first byte of a message to its last."""


class UnfinishedMessage:
    """The message of which a part has arrived, if there is one."""

    __slots__ = ("_count", "_loop", "_timer", "began", "counted")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.counted = 0
        """Bytes that count in UnfinishedInput."""
        self.began: float | None = None
        """When its first byte arrived, by the loop's clock; None between messages."""
        self._loop = loop
        self._count: Callable[..., int] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def count_by(self, change: Callable[..., int]) -> None:
        """Count the bytes by `change`, which is UnfinishedInput.change of the client's address."""
        self._count = change

    def count(self, size: int) -> None:
        """Count `size` bytes in place of the last ones; 429 or 503 if these are too many."""
        if self._count is not None:
            self.counted = self._count(held=self.counted, size=size)

    def begin(self, may_read: Callable[[], bool], expired: Callable[[], None]) -> None:
        """Limit the time of a message from now, unless it began before.

        `expired` is called once the time is over. It does not run while `may_read` returns False:
        the client may have sent the rest.
        """
        if self.began is None:
            self.began = self._loop.time()
            if self._timer is None:
                self._set_timer(_MESSAGE_SECONDS, may_read, expired)

    def discard(self) -> None:
        """Release the counted bytes, and stop the timer."""
        if self.counted:
            self.count(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(
        self, seconds: float, may_read: Callable[[], bool], expired: Callable[[], None]
    ) -> None:
        self._timer = self._loop.call_later(seconds, self._check, may_read, expired)

    def _check(self, may_read: Callable[[], bool], expired: Callable[[], None]) -> None:
        """Call `expired` if the time is over; the timer is rarely set: see Deadlines."""
        self._timer = None
        if self.began is None:
            return
        now = self._loop.time()
        if not may_read():
            self.began = now
        remaining = self.began + _MESSAGE_SECONDS - now
        if remaining > 0:
            self._set_timer(remaining, may_read, expired)
        else:
            expired()
