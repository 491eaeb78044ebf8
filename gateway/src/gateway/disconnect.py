"""Cancel the work of a request when its client disconnects."""

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive

if TYPE_CHECKING:  # http1 sends problems, and so imports gateway.responses
    from gateway.http1.exchange import Exchange

__all__ = ["cancelled_by_disconnect"]

_UNWATCHED_SECONDS: Final = 0.1
"""Without an exchange: most calls end sooner, and then need only a timer instead of a task."""


class cancelled_by_disconnect:  # noqa: N801  # a context manager
    """Cancel the task inside once the client has disconnected, and raise ClientDisconnect.

    The exchange reports the disconnect. With a server that has no exchange, a task waits for the
    disconnect, from `after` seconds on.
    """

    __slots__ = ("_after", "_disconnected", "_exchange", "_receive", "_task", "_timer", "_watcher")

    def __init__(
        self,
        receive: Receive,
        exchange: "Exchange | None" = None,
        *,
        after: float = _UNWATCHED_SECONDS,
    ) -> None:
        self._receive = receive
        self._exchange = exchange
        self._after = after
        self._disconnected = False
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        exchange = self._exchange
        if exchange is not None:
            self._task = exchange.task
            exchange.on_disconnect(self._cancel)
            return
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer = loop.call_later(self._after, self._start_watcher)

    def _cancel(self) -> None:
        self._disconnected = True
        if self._task is not None:
            self._task.cancel()

    def _start_watcher(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # the rest of the body
        self._cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._exchange is not None:
            self._exchange.disconnect_callback = None
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # a cancelled task refers to its frame: a cycle for each request
        if self._disconnected and self._task is not None and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise ClientDisconnect from None
