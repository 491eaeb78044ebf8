"""Fills the databases, runs the system over them, and measures: program.py POSTS SECONDS."""

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg
import uvloop
from pydantic import SecretStr
from pymongo import AsyncMongoClient

from bench.scale.alone import Alone
from bench.scale.content import Content, person_id, post_id, tag_of
from bench.scale.load import load
from bench.scale.rest import Rest
from postbus.posts.v1 import GetPostRequest, ListFeedRequest, ListPostsRequest, PostsServiceStub
from postbus.registry import METHODS
from postbus.users.v1 import SearchUsersRequest, UsersServiceStub
from shared.bus import Call, ServiceChannel
from shared.bus.amqp import AmqpBus, connect
from shared.runtime import gc_tuning
from shared.wire import encode
from tests.system import System, run_system
from tests.tokens import TokenMaker

AT_ONCE: Final = (1, 16)
PAGES: Final = 2000
Ask = Callable[[], Awaitable[object]]


class Asked:
    """What is asked for, at random."""

    def __init__(self, content: Content, tokens: TokenMaker) -> None:
        self._dice = random.Random(9)  # noqa: S311  # no secret
        self._content = content
        self._names = list(content.usernames())
        readers = [person_id(number) for number in range(content.readers)]
        self.tokens = {
            each: tokens.token(each, lifetime=timedelta(hours=2), sid=each) for each in readers
        }

    def post(self) -> str:
        return post_id(self._dice.randrange(self._content.posts))

    def tag(self) -> str:
        return tag_of(self._dice)

    def prefix(self) -> str:
        return self._dice.choice(self._names)[: self._dice.randint(2, 4)]

    def reader(self) -> str:
        return self._dice.choice(list(self.tokens))


def three_ways(asked: Asked, alone: Alone, bus: AmqpBus, rest: Rest) -> dict[str, dict[str, Ask]]:
    """Each read by the database alone, over the bus, and over REST."""
    posts, users = PostsServiceStub(ServiceChannel(bus)), UsersServiceStub(ServiceChannel(bus))
    feed = METHODS["postbus.posts.v1.PostsService.ListFeed"]

    def feed_over_bus() -> Awaitable[object]:
        token = asked.tokens[asked.reader()]
        call = Call.new(encode(ListFeedRequest()), deadline=time.time() + 5, access_token=token)
        return bus.call(feed.name, call)

    return {
        "GetPost": {
            "alone": lambda: alone.get_post(asked.post()),
            "bus": lambda: posts.get_post(GetPostRequest(id=asked.post())),
            "rest": lambda: rest.get(f"/v1/posts/{asked.post()}"),
        },
        "ListPosts by tag": {
            "alone": lambda: alone.list_posts(asked.tag()),
            "bus": lambda: posts.list_posts(ListPostsRequest(tag=asked.tag())),
            "rest": lambda: rest.get(f"/v1/posts?tag={asked.tag()}"),
        },
        "ListFeed of 500": {
            "alone": lambda: alone.list_feed(asked.reader()),
            "bus": feed_over_bus,
            "rest": lambda: rest.get("/v1/feed", asked.tokens[asked.reader()]),
        },
        "SearchUsers": {
            "alone": lambda: alone.search_users(asked.prefix()),
            "bus": lambda: users.search_users(SearchUsersRequest(q=asked.prefix())),
            "rest": lambda: rest.get(f"/v1/users?q={asked.prefix()}"),
        },
    }


async def delays(ask: Ask, at_once: int, seconds: float) -> list[float]:
    """Return how long each took, in milliseconds, after a while of warming up."""
    took: list[float] = []
    begin = time.perf_counter() + seconds / 5
    end = begin + seconds

    async def repeat() -> None:
        while (began := time.perf_counter()) < end:
            await ask()
            if began > begin:
                took.append(1000 * (time.perf_counter() - began))

    await asyncio.gather(*(repeat() for _ in range(at_once)))
    return took


async def measure(ways: dict[str, dict[str, Ask]], seconds: float, rounds: int) -> list[Any]:
    """Measure in turn, several times, after a round that fills the caches of all."""
    took: dict[tuple[str, int, str], list[float]] = {}
    for number in range(rounds + 1):
        print(f"bench: scale: round {number} of {rounds}", file=sys.stderr, flush=True)
        for name, by_way in ways.items():
            for at_once in AT_ONCE:
                for way, ask in by_way.items():
                    key = (name, at_once, way)
                    measured = await delays(ask, at_once, seconds if number else seconds / 2)
                    took.setdefault(key, []).extend(measured if number else ())
    return [
        {
            "name": name,
            "at_once": at_once,
            "way": way,
            "p50": _at(all_, 0.5),
            "p99": _at(all_, 0.99),
        }
        for (name, at_once, way), all_ in took.items()
    ]


def _at(took: list[float], part: float) -> float:
    return sorted(took)[int(len(took) * part)]


async def memory(system: System, rest: Rest) -> list[Any]:
    """What the workers hold before and after many pages of a hundred."""
    before = system.resident()
    for path in ("/v1/posts?pageSize=100", "/v1/users?pageSize=100"):
        token = ""
        for _ in range(PAGES // 2):
            page = json.loads(await rest.get(f"{path}&pageToken={token}"))
            token = page["nextPageToken"]
    after = system.resident()
    return [{"worker": name, "before": before[name], "after": after[name]} for name in before]


async def main(posts: int, seconds: float) -> None:
    content, tokens = Content(posts), TokenMaker()
    environment = {name: os.environ[name] for name in os.environ if name.startswith("POSTBUS_")}
    with tempfile.TemporaryDirectory() as logs:
        async with run_system(environment, tokens, Path(logs)) as system:
            urls = {**system.databases("users"), **system.databases("posts")}
            await load(content, urls["POSTBUS_POSTGRES_URL"], urls["POSTBUS_MONGO_URL"])
            rest = Rest(system.port)
            async with (
                connect(SecretStr(environment["POSTBUS_AMQP_URL"]), "bench") as bus,
                asyncpg.create_pool(urls["POSTBUS_POSTGRES_URL"], max_size=10) as pool,
                AsyncMongoClient[dict[str, Any]](urls["POSTBUS_MONGO_URL"]) as client,
            ):
                await bus.wait_ready()
                gc_tuning.freeze()
                alone = Alone(pool, client.get_default_database())
                ways = three_ways(Asked(content, tokens), alone, bus, rest)
                reads = await measure(ways, seconds, rounds=3)
                held = await memory(system, rest)
            await rest.close()
    print(json.dumps({"reads": reads, "memory": held}), flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
