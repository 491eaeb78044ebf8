"""Reading by id, many callers at once."""

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import ContextVar

import pytest

from shared.data.loader import Loader

whose: ContextVar[str] = ContextVar("whose")


class Shop:
    """Has what begins with `a`; remembers what it was asked, and answers once it is open."""

    def __init__(self) -> None:
        self.asked: list[set[str]] = []
        self.whose: list[str] = []
        self.begun = asyncio.Event()
        self.open = asyncio.Event()
        self.failure: Exception | None = None
        self.given_up = asyncio.Event()

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, str]:
        self.asked.append(set(ids))
        self.whose.append(whose.get("nobody's"))
        self.begun.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.given_up.set()
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


async def test_what_is_asked_for_at_the_same_moment_is_one_question(
    shop: Shop, loader: Loader[str]
) -> None:
    shop.open.set()

    found = await asyncio.gather(loader.load(["a1", "b"]), loader.load(["a2", "a1"]))
    later = await loader.load(["a3"])

    assert list(found) == [{"a1": "A1"}, {"a2": "A2", "a1": "A1"}]
    assert later == {"a3": "A3"}
    assert shop.asked == [{"a1", "a2", "b"}, {"a3"}]


async def test_many_ids_are_several_questions(shop: Shop, loader: Loader[str]) -> None:
    shop.open.set()
    ids = [f"a{number}" for number in range(350)]

    found = await asyncio.gather(*(loader.load([id_]) for id_ in ids))

    assert [list(each) for each in found] == [[id_] for id_ in ids]
    assert [len(each) for each in shop.asked] == [100, 100, 100, 50]


async def test_question_is_part_of_nobodys_context(shop: Shop, loader: Loader[str]) -> None:
    shop.open.set()
    whose.set("the first caller's")

    await loader.load(["a"])

    assert shop.whose == ["nobody's"]


async def test_failure_is_everyones(shop: Shop, loader: Loader[str]) -> None:
    shop.failure = ValueError("closed")
    shop.open.set()

    found = await asyncio.gather(loader.load(["a"]), loader.load(["b"]), return_exceptions=True)

    assert list(found) == [shop.failure, shop.failure]


async def test_who_leaves_leaves_the_others_alone(shop: Shop, loader: Loader[str]) -> None:
    leaving, staying = (asyncio.create_task(loader.load([id_])) for id_ in ("a1", "a2"))
    await shop.begun.wait()

    shop.open.set()
    leaving.cancel()  # too late for the question to notice

    assert await staying == {"a2": "A2"}
    assert leaving.cancelled()


async def test_question_ends_when_all_have_left(shop: Shop, loader: Loader[str]) -> None:
    tasks = [asyncio.create_task(loader.load([id_])) for id_ in ("a1", "a2")]
    await shop.begun.wait()

    for task in tasks:
        task.cancel()

    async with asyncio.timeout(5):
        await shop.given_up.wait()


async def test_nothing_is_asked_for_those_who_left_before(shop: Shop, loader: Loader[str]) -> None:
    leaving = asyncio.create_task(loader.load(["a1"]))
    asyncio.get_running_loop().call_soon(leaving.cancel)  # in the same round as its first step
    with pytest.raises(asyncio.CancelledError):
        await leaving
    shop.open.set()

    assert await loader.load(["a2"]) == {"a2": "A2"}
    assert shop.asked == [{"a2"}]
