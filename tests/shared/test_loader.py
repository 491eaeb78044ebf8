"""Batched loads by id of concurrent callers."""

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import ContextVar

import pytest

from shared.data.loader import Loader

current_caller: ContextVar[str] = ContextVar("current_caller")


class Shop:
    """Has the ids that begin with `a`. Records each fetch, and returns after `open` is set."""

    def __init__(self) -> None:
        self.fetches: list[set[str]] = []
        self.callers: list[str] = []
        self.begun = asyncio.Event()
        self.open = asyncio.Event()
        self.failure: Exception | None = None
        self.cancelled = asyncio.Event()

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, str]:
        self.fetches.append(set(ids))
        self.callers.append(current_caller.get("none"))
        self.begun.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.failure is not None:
            raise self.failure
        return {id_: id_.upper() for id_ in ids if id_.startswith("a")}


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def loader(shop: Shop) -> Loader[str]:
    return Loader(shop.fetch)


async def test_concurrent_loads_are_one_fetch(shop: Shop, loader: Loader[str]) -> None:
    shop.open.set()

    found = await asyncio.gather(loader.load(["a1", "b"]), loader.load(["a2", "a1"]))
    later = await loader.load(["a3"])

    assert list(found) == [{"a1": "A1"}, {"a2": "A2", "a1": "A1"}]
    assert later == {"a3": "A3"}
    assert shop.fetches == [{"a1", "a2", "b"}, {"a3"}]


async def test_many_ids_are_fetched_in_batches(shop: Shop, loader: Loader[str]) -> None:
    shop.open.set()
    ids = [f"a{number}" for number in range(350)]

    found = await asyncio.gather(*(loader.load([id_]) for id_ in ids))

    assert [list(each) for each in found] == [[id_] for id_ in ids]
    assert [len(each) for each in shop.fetches] == [100, 100, 100, 50]


async def test_fetch_runs_outside_the_callers_context(shop: Shop, loader: Loader[str]) -> None:
    shop.open.set()
    current_caller.set("first")

    await loader.load(["a"])

    assert shop.callers == ["none"]


async def test_failed_fetch_fails_every_load_of_the_batch(shop: Shop, loader: Loader[str]) -> None:
    shop.failure = ValueError("closed")
    shop.open.set()

    found = await asyncio.gather(loader.load(["a"]), loader.load(["b"]), return_exceptions=True)

    assert list(found) == [shop.failure, shop.failure]


async def test_cancelled_load_does_not_affect_the_batch(shop: Shop, loader: Loader[str]) -> None:
    cancelled, other = (asyncio.create_task(loader.load([id_])) for id_ in ("a1", "a2"))
    await shop.begun.wait()

    shop.open.set()
    cancelled.cancel()  # the fetch is already running

    assert await other == {"a2": "A2"}
    assert cancelled.cancelled()


async def test_fetch_is_cancelled_when_every_load_is_cancelled(
    shop: Shop, loader: Loader[str]
) -> None:
    tasks = [asyncio.create_task(loader.load([id_])) for id_ in ("a1", "a2")]
    await shop.begun.wait()

    for task in tasks:
        task.cancel()

    async with asyncio.timeout(5):
        await shop.cancelled.wait()


async def test_batch_without_waiting_loads_is_not_fetched(shop: Shop, loader: Loader[str]) -> None:
    cancelled = asyncio.create_task(loader.load(["a1"]))
    asyncio.get_running_loop().call_soon(cancelled.cancel)  # in the same tick as its first step
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    shop.open.set()

    assert await loader.load(["a2"]) == {"a2": "A2"}
    assert shop.fetches == [{"a2"}]
