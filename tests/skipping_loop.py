"""An event loop that skips the time of its timers."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

__all__ = ["run_without_waiting"]

T = TypeVar("T")

_SOCKET_SECONDS: Final = 0.005
"""Time in which a socket of this machine answers."""


class _SkippingSelector(selectors.DefaultSelector):
    """Reports no events early instead of waiting; `skipped` is the time that was saved."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= _SOCKET_SECONDS:
            return super().select(timeout)
        events = super().select(_SOCKET_SECONDS)
        if not events:
            self.skipped += timeout - _SOCKET_SECONDS
        return events


class _SkippingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return super().time() + self._skipping.skipped


def run_without_waiting(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end; the clock of its loop moves to the next timer at once."""
    loop = _SkippingLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()
