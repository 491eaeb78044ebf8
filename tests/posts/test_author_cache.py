"""The cache of authors in memory."""

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
from tests.buses import opened_bus
from tests.proxy import Proxy

ID = "0199f3f6-0000-7000-8000-000000000001"


class Clock:
    """A clock that a test sets."""

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
    """A bus to which the cache is subscribed."""
    memory = MemoryBus()
    async with cache.subscribed(memory):
        yield memory


def an_author(version: int, id_: str = ID) -> Author:
    return Author(id=id_, username=f"Name{version}", name_key=f"name{version}", version=version)


def cached_name(cache: AuthorCache, id_: str = ID) -> str | None:
    author = cache.get_many([id_]).get(id_)
    return None if author is None else author.username


async def publish(bus: MemoryBus, message: betterproto.Message) -> None:
    kind = f"postbus.users.v1.{type(message).__name__}"
    time = datetime(2026, 1, 2, tzinfo=UTC)
    await bus.publish(Event(id="e", type=kind, subject=ID, time=time, data=encode(message)))


async def until(cache: AuthorCache, name: str) -> None:
    async with asyncio.timeout(5):
        while cached_name(cache) != name:  # noqa: ASYNC110  # nothing reports a delivery
            await asyncio.sleep(0)


def test_older_version_does_not_replace_a_cached_author(cache: AuthorCache) -> None:
    cache.put([an_author(2)])
    cache.put([an_author(1)])

    assert cached_name(cache) == "Name2"
    assert cached_name(cache, "another") is None


def test_tombstone_is_never_replaced(cache: AuthorCache) -> None:
    cache.put([an_author(7)])
    cache.put([Author.tombstone(ID)])
    cache.put([an_author(8)])

    assert cached_name(cache) == ""


def test_cached_author_expires_after_a_minute(cache: AuthorCache, clock: Clock) -> None:
    cache.put([an_author(1)])
    clock.now += 59
    assert cached_name(cache) == "Name1"

    clock.now += 2

    assert cached_name(cache) is None


def test_least_recently_used_author_is_evicted_first(cache: AuthorCache) -> None:
    cache.put([an_author(1, "first"), an_author(1, "second")])
    cache.get_many(["first"])
    cache.put(an_author(1, str(number)) for number in range(19_999))

    assert cached_name(cache, "first") == "Name1"
    assert cached_name(cache, "second") is None


async def test_profile_event_updates_the_cache(cache: AuthorCache, bus: MemoryBus) -> None:
    cache.put([an_author(1)])

    await publish(bus, UserProfileUpdated(user_id=ID, username="New", version=2))

    await until(cache, "New")


async def test_stale_read_does_not_replace_a_newer_author(
    cache: AuthorCache, bus: MemoryBus
) -> None:
    await publish(bus, UserProfileUpdated(user_id=ID, username="New", version=2))
    await until(cache, "New")

    cache.put([an_author(1)])  # read before the update

    assert cached_name(cache) == "New"


async def test_deletion_event_caches_a_tombstone(cache: AuthorCache, bus: MemoryBus) -> None:
    cache.put([an_author(9)])

    await publish(bus, UserDeleted(user_id=ID))

    await until(cache, "")


async def test_break_of_the_connection_empties_the_cache(cache: AuthorCache, vhost: str) -> None:
    async with (
        Proxy.open(vhost) as proxy,
        opened_bus(vhost, "users"),  # has the exchange of the events
        opened_bus(proxy.url, "posts") as broken,
        cache.subscribed(broken),
    ):
        cache.put([an_author(1)])
        proxy.break_()

        async with asyncio.timeout(10):
            while cached_name(cache) is not None:  # noqa: ASYNC110  # nothing reports a gap
                await asyncio.sleep(0.01)
