"""Fill the databases, start the system, and measure its reads: program.py POSTS SECONDS."""

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

from bench.scale.content import Content, person_id, post_id, tag_of
from bench.scale.load import load
from bench.scale.queries import Queries
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

CONCURRENCY: Final = (1, 16)
PAGES: Final = 2000
Read = Callable[[], Awaitable[object]]


class RandomParameters:
    """Random parameters of requests."""

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


def reads_by_path(
    parameters: RandomParameters, queries: Queries, bus: AmqpBus, rest: Rest
) -> dict[str, dict[str, Read]]:
    """Return each read by name: as a database query, over the bus, and over REST."""
    posts, users = PostsServiceStub(ServiceChannel(bus)), UsersServiceStub(ServiceChannel(bus))
    feed = METHODS["postbus.posts.v1.PostsService.ListFeed"]

    def feed_over_bus() -> Awaitable[object]:
        token = parameters.tokens[parameters.reader()]
        call = Call.new(encode(ListFeedRequest()), budget=5, access_token=token)
        return bus.call(feed.name, call)

    return {
        "GetPost": {
            "query": lambda: queries.get_post(parameters.post()),
            "bus": lambda: posts.get_post(GetPostRequest(id=parameters.post())),
            "rest": lambda: rest.get(f"/v1/posts/{parameters.post()}"),
        },
        "ListPosts by tag": {
            "query": lambda: queries.list_posts(parameters.tag()),
            "bus": lambda: posts.list_posts(ListPostsRequest(tag=parameters.tag())),
            "rest": lambda: rest.get(f"/v1/posts?tag={parameters.tag()}"),
        },
        "ListFeed of 500": {
            "query": lambda: queries.list_feed(parameters.reader()),
            "bus": feed_over_bus,
            "rest": lambda: rest.get("/v1/feed", parameters.tokens[parameters.reader()]),
        },
        "SearchUsers": {
            "query": lambda: queries.search_users(parameters.prefix()),
            "bus": lambda: users.search_users(SearchUsersRequest(q=parameters.prefix())),
            "rest": lambda: rest.get(f"/v1/users?q={parameters.prefix()}"),
        },
    }


async def measure_read(read: Read, concurrency: int, seconds: float) -> list[float]:
    """Return the duration of each read in milliseconds, measured after a warm-up."""
    durations: list[float] = []
    begin = time.perf_counter() + seconds / 5
    end = begin + seconds

    async def repeat() -> None:
        while (began := time.perf_counter()) < end:
            await read()
            if began > begin:
                durations.append(1000 * (time.perf_counter() - began))

    await asyncio.gather(*(repeat() for _ in range(concurrency)))
    return durations


async def measure(reads: dict[str, dict[str, Read]], seconds: float, rounds: int) -> list[Any]:
    """Measure all reads in several rounds; an additional first round fills the caches."""
    durations: dict[tuple[str, int, str], list[float]] = {}
    for number in range(rounds + 1):
        print(f"bench: scale: round {number} of {rounds}", file=sys.stderr, flush=True)
        for name, by_path in reads.items():
            for concurrency in CONCURRENCY:
                for path, read in by_path.items():
                    key = (name, concurrency, path)
                    measured = await measure_read(
                        read, concurrency, seconds if number else seconds / 2
                    )
                    durations.setdefault(key, []).extend(measured if number else ())
    return [
        {
            "name": name,
            "concurrency": concurrency,
            "path": path,
            "p50": _percentile(all_, 0.5),
            "p99": _percentile(all_, 0.99),
        }
        for (name, concurrency, path), all_ in durations.items()
    ]


def _percentile(durations: list[float], part: float) -> float:
    return sorted(durations)[int(len(durations) * part)]


async def memory(system: System, rest: Rest) -> list[Any]:
    """Return the memory of each worker before and after 2,000 pages of a hundred items."""
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
                queries = Queries(pool, client.get_default_database())
                all_reads = reads_by_path(RandomParameters(content, tokens), queries, bus, rest)
                reads = await measure(all_reads, seconds, rounds=3)
                resident = await memory(system, rest)
            await rest.close()
    print(json.dumps({"reads": reads, "memory": resident}), flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
