"""Results that are expensive to compute, cached for a short time."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

__all__ = ["CachedResult"]

T = TypeVar("T")


class CachedResult(Generic[T]):
    """The result of `compute`, at most `seconds` old; concurrent callers share one computation."""

    def __init__(self, compute: Callable[[], Coroutine[Any, Any, T]], *, seconds: float) -> None:
        self._compute = compute
        self._seconds = seconds
        self._computed_at = 0.0
        self._task: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Return the result, or raise the error of `compute`.

        The cancellation of a caller does not cancel the shared computation.
        """
        task = self._task
        if task is None or (task.done() and time.monotonic() - self._computed_at > self._seconds):
            task = self._task = asyncio.create_task(self._compute())
            task.add_done_callback(self._set_time)
        return await asyncio.shield(task)

    def _set_time(self, _task: "asyncio.Task[T]") -> None:
        self._computed_at = time.monotonic()
