"""Author cards in memory."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import betterproto
import pytest

from postbus.bus.v1 import Event
from postbus.users.v1 import UserDeleted, UserProfileUpdated
from posts.authors import gone
from posts.card_cache import CardCache
from posts.models import Author
from shared.bus.memory import MemoryBus
from shared.wire import encode

ID = "0199f3f6-0000-7000-8000-000000000001"


class Clock:
    """Says what a test wants."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> CardCache:
    return CardCache(clock)


@pytest.fixture
async def bus(cache: CardCache) -> AsyncIterator[MemoryBus]:
    """What the cache hears."""
    memory = MemoryBus()
    async with cache.hearing(memory):
        yield memory


def a_card(version: int, id_: str = ID) -> Author:
    return Author(id=id_, username=f"Name{version}", name_key=f"name{version}", version=version)


def shown(cache: CardCache, id_: str = ID) -> str | None:
    card = cache.of([id_]).get(id_)
    return None if card is None else card.username


async def tell(bus: MemoryBus, message: betterproto.Message) -> None:
    kind = f"postbus.users.v1.{type(message).__name__}"
    time = datetime(2026, 1, 2, tzinfo=UTC)
    await bus.publish(Event(id="e", type=kind, subject=ID, time=time, data=encode(message)))


async def until(cache: CardCache, name: str) -> None:
    async with asyncio.timeout(5):
        while shown(cache) != name:  # noqa: ASYNC110  # the bus says nothing when it has delivered
            await asyncio.sleep(0)


def test_later_card_stays(cache: CardCache) -> None:
    cache.keep([a_card(2)])
    cache.keep([a_card(1)])

    assert shown(cache) == "Name2"
    assert shown(cache, "another") is None


def test_nothing_comes_back_of_who_is_gone(cache: CardCache) -> None:
    cache.keep([a_card(7)])
    cache.keep([gone(ID)])
    cache.keep([a_card(8)])

    assert shown(cache) == ""


def test_card_is_read_again_after_a_minute(cache: CardCache, clock: Clock) -> None:
    cache.keep([a_card(1)])
    clock.now += 59
    assert shown(cache) == "Name1"

    clock.now += 2

    assert shown(cache) is None


def test_card_that_was_asked_for_longest_ago_is_forgotten_first(cache: CardCache) -> None:
    cache.keep([a_card(1, "first"), a_card(1, "second")])
    cache.of(["first"])
    cache.keep(a_card(1, str(number)) for number in range(19_999))

    assert shown(cache, "first") == "Name1"
    assert shown(cache, "second") is None


async def test_change_is_heard_of(cache: CardCache, bus: MemoryBus) -> None:
    cache.keep([a_card(1)])

    await tell(bus, UserProfileUpdated(user_id=ID, username="New", version=2))

    await until(cache, "New")


async def test_change_is_heard_of_before_its_card_is_read(cache: CardCache, bus: MemoryBus) -> None:
    await tell(bus, UserProfileUpdated(user_id=ID, username="New", version=2))
    await until(cache, "New")

    cache.keep([a_card(1)])  # read before the database knew

    assert shown(cache) == "New"


async def test_deletion_is_heard_of(cache: CardCache, bus: MemoryBus) -> None:
    cache.keep([a_card(9)])

    await tell(bus, UserDeleted(user_id=ID))

    await until(cache, "")
