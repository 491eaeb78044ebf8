"""Reading by id, many callers at once: a data loader, as GraphQL's servers have it.

One question to a database costs as much as the thirty documents that it could bring.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import Context
from typing import Final, Generic, TypeVar

__all__ = ["Loader"]

V = TypeVar("V")
Fetch = Callable[[Sequence[str]], Awaitable[Mapping[str, V]]]

_AT_ONCE: Final = 100
"""Ids in one question, about: few enough that nobody waits long for what others ask."""


class Loader(Generic[V]):
    """Puts what is asked for at the same moment into one question, `fetch`.

    What one caller is told the others are told as well, the error included. A caller that is
    cancelled leaves the others alone; when all are, so is the question. It is asked in a context of
    its own: no caller's work, trace or deadline is the others'.
    """

    def __init__(self, fetch: Fetch[V]) -> None:
        self._fetch = fetch
        self._next: _Question[V] | None = None

    async def load(self, ids: Sequence[str]) -> dict[str, V]:
        """Return what was found, by id."""
        question = self._next
        if question is None or len(question.ids) >= _AT_ONCE:
            question = self._next = _Question(self._fetch)
            asyncio.get_running_loop().call_soon(self._ask, question)
        found = await question.answer(ids)
        return {id_: found[id_] for id_ in ids if id_ in found}

    def _ask(self, question: "_Question[V]") -> None:
        if question is self._next:
            self._next = None
        question.ask()


class _Question(Generic[V]):
    """One question and those who wait for its answer."""

    def __init__(self, fetch: Fetch[V]) -> None:
        self._fetch = fetch
        self._waiting: set[asyncio.Future[Mapping[str, V]]] = set()
        self._task: asyncio.Task[None] | None = None
        self.ids: set[str] = set()

    async def answer(self, ids: Sequence[str]) -> Mapping[str, V]:
        """Return what was found of everybody's ids."""
        future: asyncio.Future[Mapping[str, V]] = asyncio.get_running_loop().create_future()
        self.ids.update(ids)
        self._waiting.add(future)
        try:
            return await future
        finally:
            self._waiting.discard(future)
            if self._task is not None and not self._waiting:
                self._task.cancel()

    def ask(self) -> None:
        """Ask, if anybody still waits."""
        if self._waiting:
            self._task = asyncio.create_task(self._run(), context=Context())

    async def _run(self) -> None:
        try:
            found = await self._fetch(list(self.ids))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is for those who wait
            for future in self._open():
                future.set_exception(error)
        else:
            for future in self._open():
                future.set_result(found)
        finally:
            for future in self._open():
                future.cancel()

    def _open(self) -> Iterator[asyncio.Future[Mapping[str, V]]]:
        return (future for future in self._waiting if not future.done())
