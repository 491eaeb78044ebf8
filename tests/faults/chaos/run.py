"""Inject faults under load, one row after the other, and report each."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx

from tests.conftest import Place as Servers
from tests.conftest import new_vhost
from tests.faults.chaos.checker import Findings, check, read_state
from tests.faults.chaos.history import Load
from tests.faults.chaos.rows import ROWS, Place
from tests.people import Person, sign_up
from tests.proxy import Proxy
from tests.system import run_system
from tests.tokens import TokenMaker

__all__ = ["Outcome", "chaotic_system", "inject_under_load"]

PEOPLE: Final = 12
PAUSE: Final = 0.6
"""Seconds between two requests of a person, on average."""
SETTLE_SECONDS: Final = 60.0
"""Time after the last fault in which every event must have had its effect."""
_SERVERS: Final = ("rabbitmq", "postgresql", "mongodb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the faults of one run did: `back` by row, and what the checker found."""

    back: dict[str, float]
    """Seconds from the end of the fault to good responses of all four kinds."""
    errors: dict[str, int]
    """Number of responses by status."""
    writes: int
    settled: float
    """Seconds until no event was on its way."""
    findings: Findings


@asynccontextmanager
async def chaotic_system(
    servers: Servers, run_id: str, tokens: TokenMaker, logs: Path, management_url: str
) -> AsyncIterator[Place]:
    """Run two processes of each service behind proxies, in a virtual host of their own."""
    proxies, environment = {}, {}
    async with AsyncExitStack() as stack:
        vhost = f"{run_id}_chaos"
        url = await stack.enter_async_context(new_vhost(vhost))
        addresses = replace(servers, amqp_url=url).as_environment().items()
        for name, (variable, address) in zip(_SERVERS, addresses, strict=True):
            target = httpx.URL(address)
            proxies[name] = Proxy(target.host, target.port or 0)
            await proxies[name].start()
            stack.push_async_callback(proxies[name].stop)
            environment[variable] = str(target.copy_with(port=proxies[name].port))
        system = await stack.enter_async_context(run_system(environment, tokens, logs))
        await system.start("posts-2", "users-2", "gateway-2")
        await system.until_ready(40)
        await system.until_ready(40, url=system.url_of("gateway-2"))
        database = httpx.URL(servers.postgres_url)
        yield Place(
            system=system,
            proxies=proxies,
            management_url=management_url,
            vhost=vhost,
            postgres_url=str(database.copy_with(path=f"{database.path}_users")),
            dice=random.Random(),  # noqa: S311
        )


async def inject_under_load(
    place: Place, servers: Servers, unique: Callable[[str], str], runs: Sequence[Sequence[str]]
) -> Outcome:
    """Inject each group of rows at the same time, one group after the other."""
    system = place.system
    urls = [system.url, system.url_of("gateway-2")]
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as client:
        people = [await sign_up(client, unique("chaos")) for _ in range(PEOPLE)]
        posts = [
            (
                await client.post(
                    "/v1/posts", json={"title": unique("base")}, headers=people[0].headers
                )
            )
            .raise_for_status()
            .json()["id"]
            for _ in range(3)
        ]
        load = Load(urls, people, posts, unique, place.dice)
        running = asyncio.create_task(load.run(PAUSE))
        back = {}
        await asyncio.sleep(2)
        for names in runs:
            print(f"chaos: {' and '.join(ROWS[name].title for name in names)}", flush=True)  # noqa: T201
            await asyncio.gather(*(ROWS[name].inject(place) for name in names))
            back[" + ".join(names)] = await _until_good(client, people[0], posts[0], unique)
            print(f"chaos: back after {back[' + '.join(names)]:.1f} s", flush=True)  # noqa: T201
            await asyncio.sleep(1)
        load.stop.set()
        await running
        settled = await _settle(place)
        mongo = httpx.URL(servers.mongo_url)
        state = await read_state(
            str(mongo.copy_with(path=f"{mongo.path}_posts")), place.postgres_url
        )
    statuses = [each.status for each in load.history.tries()]
    return Outcome(
        back=back,
        errors={str(each): statuses.count(each) for each in sorted(set(statuses))},
        writes=len(load.history.writes),
        settled=settled,
        findings=check(load.history, state),
    )


async def _until_good(
    client: httpx.AsyncClient, person: Person, post: str, unique: Callable[[str], str]
) -> float:
    """Return the seconds until a read and a write of each service succeed, at most 60."""
    began = time.monotonic()

    async def good(verb: str, path: str, body: dict[str, Any] | None) -> None:
        while True:
            headers = person.headers | {"Idempotency-Key": unique("probe"), "Request-Timeout": "1"}
            try:
                answer = await client.request(verb, path, json=body, headers=headers)
                if answer.is_success:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.05)

    async with asyncio.timeout(60):
        await asyncio.gather(
            good("GET", "/v1/me", None),
            good("PATCH", "/v1/me", {"displayName": unique("name")}),
            good("GET", f"/v1/posts/{post}", None),
            good("PATCH", f"/v1/posts/{post}", {"summary": unique("text")}),
        )
    return time.monotonic() - began


async def _settle(place: Place) -> float:
    """Return the seconds until no queue of a consumer and no delay queue has a message."""
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=place.management_url, timeout=10) as management:
        async with asyncio.timeout(SETTLE_SECONDS):
            empty = 0
            while empty < 3:  # the counts of the management API are a few seconds old
                queues = (await management.get(f"/api/queues/{place.vhost}")).json()
                waiting = [each["name"] for each in queues if _waits(each)]
                empty = 0 if waiting else empty + 1
                await asyncio.sleep(1)
    return time.monotonic() - began


def _waits(queue: dict[str, Any]) -> bool:
    stream = (
        queue.get("arguments", {}).get("x-queue-type") == "stream" or queue.get("type") == "stream"
    )
    return bool(queue.get("messages")) and not stream and not queue["name"].endswith(".dead")
