"""A client that leaves before it is answered."""

import asyncio
from types import TracebackType
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive

__all__ = ["cancelled_by_disconnect"]

_UNWATCHED_SECONDS: Final = 0.1
"""Most calls end sooner, and then cost a timer instead of a task."""


class cancelled_by_disconnect:  # noqa: N801  # a context manager
    """Cancel the task inside once the client has left, and raise ClientDisconnect.

    The client is watched from `after` seconds on.
    """

    __slots__ = ("_after", "_gone", "_listener", "_receive", "_task", "_timer")

    _task: "asyncio.Task[Any]"
    _timer: asyncio.TimerHandle

    def __init__(self, receive: Receive, after: float = _UNWATCHED_SECONDS) -> None:
        self._receive = receive
        self._after = after
        self._gone = False
        self._listener: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be cancelled")
        self._task = task
        self._timer = task.get_loop().call_later(self._after, self._watch)

    def _watch(self) -> None:
        self._listener = self._task.get_loop().create_task(self._listen())

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # the rest of the body
        self._gone = True
        self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None  # a cancelled task holds its frame: a cycle for each request
        if self._gone and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise ClientDisconnect from None
