"""GET of one post with and without a token, on the real system with its databases."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx

from bench.http.contenders import POST
from bench.process import cpu_seconds
from bench.report import Result
from bench.rpc.contenders import QUICK
from bench.scale.rest import Rest
from tests.system import System, run_system
from tests.tokens import TokenMaker
from tools.servers import Addresses

__all__ = ["reads"]

_READS: Final = 400 if QUICK else 4000
_CONCURRENCY: Final = 16
_STATISTICS_SECONDS: Final = 6
"""RabbitMQ's management updates its message counts every five seconds."""


def reads(addresses: Addresses, url: str) -> Iterator[Result]:
    """Compare reads with and without a token: CPU of gateway and workers, broker messages."""
    print("bench: http: GET of a post with and without a token", flush=True)
    found = asyncio.run(_measure(addresses, url))
    for measure, unit in (("CPU", "ms/read"), ("broker messages", "messages/read")):
        yield Result(
            measure=f"http: GET of a post with a token, {measure}",
            unit=unit,
            ours=found["with"][measure],
            rivals={"without a token": found["without"][measure]},
        )


async def _measure(addresses: Addresses, url: str) -> dict[str, dict[str, float]]:
    own = {"path": f"/bench_http_{os.getpid()}"}
    environment = {
        "POSTBUS_AMQP_URL": url,
        "POSTBUS_POSTGRES_URL": str(httpx.URL(addresses.postgres_url).copy_with(**own)),
        "POSTBUS_MONGO_URL": str(httpx.URL(addresses.mongo_url).copy_with(**own)),
    }
    with tempfile.TemporaryDirectory() as logs:
        async with run_system(environment, TokenMaker(), Path(logs)) as system:
            token, post_id = await _content(system)
            rest, found = Rest(system.port), {}
            for name, used in (("without", ""), ("with", token)):
                await _read(rest, post_id, used, _READS // 4)
                found[name] = await _cost(system, addresses, rest, post_id, used)
            await rest.close()
    return found


async def _content(system: System) -> tuple[str, str]:
    """Create a reader and a post of another user; return the reader's token and the post's id."""
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as client:
        tokens = []
        for name in ("author", "reader"):
            account = {
                "username": name,
                "email": f"{name}@example.com",
                "password": "one of the many horses",
            }
            (await client.post("/v1/auth/signup", json=account)).raise_for_status()
            login = {"login": name, "password": account["password"]}
            session = (await client.post("/v1/auth/login", json=login)).raise_for_status().json()
            tokens.append(session["accessToken"])
        author = {"Authorization": f"Bearer {tokens[0]}"}
        post = await client.post("/v1/posts", json=POST, headers=author)
        return tokens[1], post.raise_for_status().json()["id"]


async def _read(rest: Rest, post_id: str, token: str, number: int) -> None:
    async def read_share() -> None:
        for _ in range(number // _CONCURRENCY):
            await rest.get(f"/v1/posts/{post_id}", token)

    await asyncio.gather(*(read_share() for _ in range(_CONCURRENCY)))


async def _cost(
    system: System, addresses: Addresses, rest: Rest, post_id: str, token: str
) -> dict[str, float]:
    pids = system.pids()
    before = await _published(addresses), cpu_seconds(pids)
    await _read(rest, post_id, token, _READS)
    used = cpu_seconds(pids) - before[1]
    published = await _published(addresses) - before[0]
    number = _READS // _CONCURRENCY * _CONCURRENCY
    return {"CPU": used / number * 1000, "broker messages": published / number}


async def _published(addresses: Addresses) -> int:
    await asyncio.sleep(_STATISTICS_SECONDS)
    async with httpx.AsyncClient(base_url=addresses.amqp_management_url, trust_env=False) as client:
        vhost: dict[str, Any] = (await client.get("/api/vhosts/bench")).raise_for_status().json()
    return int(vhost.get("message_stats", {}).get("publish", 0))
