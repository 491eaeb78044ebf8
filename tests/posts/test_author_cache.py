"""Author cards in memory."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import betterproto
import pytest

from postbus.bus.v1 import Event
from postbus.users.v1 import UserDeleted, UserProfileUpdated
from posts.authors import AuthorCache
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
def cache(clock: Clock) -> AuthorCache:
    return AuthorCache(clock)


@pytest.fixture
async def bus(cache: AuthorCache) -> AsyncIterator[MemoryBus]:
    """What the cache hears."""
    memory = MemoryBus()
    async with cache.subscribed(memory):
        yield memory


def a_card(version: int, id_: str = ID) -> Author:
    return Author(id=id_, username=f"Name{version}", name_key=f"name{version}", version=version)


def shown(cache: AuthorCache, id_: str = ID) -> str | None:
    card = cache.get_many([id_]).get(id_)
    return None if card is None else card.username


async def tell(bus: MemoryBus, message: betterproto.Message) -> None:
    kind = f"postbus.users.v1.{type(message).__name__}"
    time = datetime(2026, 1, 2, tzinfo=UTC)
    await bus.publish(Event(id="e", type=kind, subject=ID, time=time, data=encode(message)))


async def until(cache: AuthorCache, name: str) -> None:
    async with asyncio.timeout(5):
        while shown(cache) != name:  # noqa: ASYNC110  # the bus says nothing when it has delivered
            await asyncio.sleep(0)


def test_older_version_does_not_replace_a_cached_author(cache: AuthorCache) -> None:
    cache.put([a_card(2)])
    cache.put([a_card(1)])

    assert shown(cache) == "Name2"
    assert shown(cache, "another") is None


def test_tombstone_is_never_replaced(cache: AuthorCache) -> None:
    cache.put([a_card(7)])
    cache.put([Author.tombstone(ID)])
    cache.put([a_card(8)])

    assert shown(cache) == ""


def test_cached_author_expires_after_a_minute(cache: AuthorCache, clock: Clock) -> None:
    cache.put([a_card(1)])
    clock.now += 59
    assert shown(cache) == "Name1"

    clock.now += 2

    assert shown(cache) is None


def test_least_recently_used_author_is_evicted_first(cache: AuthorCache) -> None:
    cache.put([a_card(1, "first"), a_card(1, "second")])
    cache.get_many(["first"])
    cache.put(a_card(1, str(number)) for number in range(19_999))

    assert shown(cache, "first") == "Name1"
    assert shown(cache, "second") is None


async def test_profile_event_updates_the_cache(cache: AuthorCache, bus: MemoryBus) -> None:
    cache.put([a_card(1)])

    await tell(bus, UserProfileUpdated(user_id=ID, username="New", version=2))

    await until(cache, "New")


async def test_event_before_a_stale_read_keeps_the_newer_author(
    cache: AuthorCache, bus: MemoryBus
) -> None:
    await tell(bus, UserProfileUpdated(user_id=ID, username="New", version=2))
    await until(cache, "New")

    cache.put([a_card(1)])  # read before the database knew

    assert shown(cache) == "New"


async def test_deletion_event_caches_a_tombstone(cache: AuthorCache, bus: MemoryBus) -> None:
    cache.put([a_card(9)])

    await tell(bus, UserDeleted(user_id=ID))

    await until(cache, "")
