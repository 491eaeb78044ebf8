"""`just bench hot`: 32 concurrent writers that share one tag, post or user, or share nothing.

The rival of each measure is the same write without anything shared, in the same run. The writers
like and unlike, follow and unfollow, so that each request changes a counter. BENCH_QUICK measures
one short round.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import httpx

from bench.report import Result
from bench.rpc.contenders import QUICK, virtual_host
from tests.people import Client, sign_up
from tests.system import System, run_system
from tests.tokens import TokenMaker
from tools.servers import servers

__all__ = ["run"]

_WRITERS: Final = 32
_ROUNDS: Final = 1 if QUICK else 3
_SECONDS: Final = 2.0 if QUICK else 4.0

Write = Callable[[int, int], Awaitable[object]]
"""Does the n-th write of a writer; both numbers begin at 0."""


def run() -> list[Result]:
    """Measure each kind of write, shared and not shared alternately."""
    with (
        servers("bench") as addresses,
        virtual_host(addresses) as amqp_url,
        tempfile.TemporaryDirectory() as logs,
    ):
        name = f"/bench_hot_{os.getpid()}"
        environment = {
            "POSTBUS_AMQP_URL": amqp_url,
            "POSTBUS_POSTGRES_URL": str(httpx.URL(addresses.postgres_url).copy_with(path=name)),
            "POSTBUS_MONGO_URL": str(httpx.URL(addresses.mongo_url).copy_with(path=name)),
        }
        measured = asyncio.run(_measure(environment, Path(logs)))
    return [
        Result(
            measure=f"hot: {kind}, {_WRITERS} at once, {about}",
            unit=unit,
            ours=statistics.median(each[part] for each in by_sharing["shared"]),
            rivals={
                "nothing shared": statistics.median(each[part] for each in by_sharing["apart"])
            },
        )
        for kind, by_sharing in measured.items()
        for part, unit, about in (("rate", "writes/s", "rate"), ("p99", "ms", "99th percentile"))
    ]


async def _measure(environment: dict[str, str], logs: Path) -> dict[str, Any]:
    """Return the rounds by kind of write and by sharing, in a system with two of each worker."""
    async with (
        run_system(environment, TokenMaker(), logs) as system,
        httpx.AsyncClient(base_url=system.url, timeout=30) as client,
    ):
        await system.start("posts-2", "users-2")
        people = [
            Client(client, await sign_up(client, f"writer{number}")) for number in range(_WRITERS)
        ]
        followed = [
            (await sign_up(client, f"followed{number}")).username for number in range(_WRITERS)
        ]
        await system.until_ready()
        return await _rounds(system, await _writes(people, followed))


async def _rounds(system: System, writes: dict[str, dict[str, Write]]) -> dict[str, Any]:
    measured: dict[str, Any] = {kind: {"shared": [], "apart": []} for kind in writes}
    for _ in range(_ROUNDS):
        for kind, by_sharing in writes.items():
            for sharing, write in by_sharing.items():
                measured[kind][sharing].append(await _round(write))
    for service in ("posts", "users"):
        print(f"bench: hot: {(await system.output(service, 'repair')).splitlines()[-1]}")
    return measured


async def _writes(people: list[Client], followed: list[str]) -> dict[str, dict[str, Write]]:
    posts = [(await each.done("POST", "/v1/posts", {"title": "A post"}))["id"] for each in people]

    def post(tag: Callable[[int], str]) -> Write:
        return lambda writer, n: people[writer].done(
            "POST", "/v1/posts", {"title": f"Post {writer} {n}", "tags": [tag(writer)]}
        )

    def like(of: Callable[[int], str]) -> Write:
        return lambda writer, n: people[writer].done(
            "DELETE" if n % 2 else "PUT", f"/v1/posts/{of(writer)}/like"
        )

    def comment(on: Callable[[int], str]) -> Write:
        return lambda writer, _: people[writer].done(
            "POST", f"/v1/posts/{on(writer)}/comments", {"body": "A comment"}
        )

    def follow(of: Callable[[int], str]) -> Write:
        return lambda writer, n: people[writer].done(
            "DELETE" if n % 2 else "PUT", f"/v1/users/{of(writer)}/follow"
        )

    return {
        "posts with a tag": {
            "shared": post(lambda _: "shared"),
            "apart": post(lambda writer: f"tag{writer}"),
        },
        "likes": {
            "shared": like(lambda _: posts[0]),
            "apart": like(lambda writer: posts[writer]),
        },
        "comments": {
            "shared": comment(lambda _: posts[0]),
            "apart": comment(lambda writer: posts[writer]),
        },
        "follows": {
            "shared": follow(lambda _: followed[0]),
            "apart": follow(lambda writer: followed[writer]),
        },
    }


async def _round(write: Write) -> dict[str, float]:
    """Return the writes in a second, and the 99th percentile of their durations in ms."""
    durations: list[float] = []
    began = time.perf_counter()

    async def repeat(writer: int) -> None:
        n = 0
        while (at := time.perf_counter()) < began + _SECONDS or n % 2:  # ends with an unlike
            await write(writer, n)
            durations.append(1000 * (time.perf_counter() - at))
            n += 1

    await asyncio.gather(*(repeat(writer) for writer in range(_WRITERS)))
    rate = len(durations) / (time.perf_counter() - began)
    return {"rate": rate, "p99": sorted(durations)[int(len(durations) * 0.99)]}
