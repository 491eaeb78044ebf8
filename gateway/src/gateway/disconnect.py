"""A client that leaves before it is answered."""

import asyncio
from types import TracebackType

from starlette.requests import ClientDisconnect, Request

__all__ = ["cancelled_by_disconnect"]


class cancelled_by_disconnect:  # noqa: N801  # a context manager
    """Cancels the task inside once the client has gone: ClientDisconnect."""

    __slots__ = ("_gone", "_listener", "_request", "_task")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._gone = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass  # what is left of the body
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._listener.cancel()
        del self._listener  # what was cancelled holds its frame: a cycle for each request
        if self._gone and kind is asyncio.CancelledError:
            raise ClientDisconnect from None
