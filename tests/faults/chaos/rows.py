"""The faults of the matrix: each injects one, and returns once it has ended."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import httpx

from tests.proxy import Proxy
from tests.system import System

__all__ = ["QUICK", "ROWS", "Place", "Row", "pairs"]

WORKERS: Final = ("posts", "posts-2", "users", "users-2")
GATEWAYS: Final = ("gateway", "gateway-2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A running system with two processes of each kind, behind a proxy for each server."""

    system: System
    proxies: dict[str, Proxy]
    management_url: str
    vhost: str
    postgres_url: str
    """An administrator's account in the database of `users`, beside the proxy."""
    dice: random.Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault; `allowed` seconds may pass from its end to good responses of every kind."""

    number: str
    title: str
    inject: Callable[[Place], Awaitable[None]]
    allowed: float


ROWS: dict[str, Row] = {}
Inject = Callable[[Place], Awaitable[None]]


def row(number: str, title: str, allowed: float) -> Callable[[Inject], Inject]:
    """Add a fault to the matrix under the name of its function."""

    def add(inject: Inject) -> Inject:
        name = inject.__name__
        ROWS[name] = Row(number=number, title=title, inject=inject, allowed=allowed)
        return inject

    return add


async def _restart(place: Place, *names: str) -> None:
    await place.system.start(*names)
    await place.system.until_ready(40)


@row("1", "SIGKILL of one worker of two", 1)
async def one_worker_killed(place: Place) -> None:
    name = place.dice.choice(WORKERS)
    await place.system.kill(name)
    await asyncio.sleep(2)
    await _restart(place, name)


@row("1", "SIGKILL of all workers of a service", 2)
async def all_workers_killed(place: Place) -> None:
    service = place.dice.choice(("posts", "users"))
    names = [name for name in WORKERS if name.startswith(service)]
    await asyncio.gather(*(place.system.kill(name) for name in names))
    await asyncio.sleep(2)
    await _restart(place, *names)


@row("4", "SIGKILL of a gateway", 2)
async def gateway_killed(place: Place) -> None:
    await place.system.kill("gateway-2")
    await asyncio.sleep(1)
    await _restart(place, "gateway-2")


@row("5", "SIGTERM of all processes in turn", 2)
async def rolling_restart(place: Place) -> None:
    for name in (*WORKERS, *GATEWAYS):
        await place.system.stop(name, 20)
        await _restart(place, name)


@row("6", "RabbitMQ is unreachable for 3 s", 3)
async def broker_unreachable(place: Place) -> None:
    await _unreachable(place, "rabbitmq", 3)


@row("8", "RabbitMQ does not respond for 15 s", 3)
async def broker_stalled(place: Place) -> None:
    await _stalled(place, "rabbitmq", 15)


@row("10", "SIGSTOP of a worker for 15 s", 3)
async def worker_frozen(place: Place) -> None:
    name = place.dice.choice(WORKERS)
    pid = place.system.pid(name)
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(15)
    finally:
        os.kill(pid, signal.SIGCONT)


@row("11", "connections to RabbitMQ cut 12 times", 2)
async def broker_connections_cut(place: Place) -> None:
    for _ in range(12):
        place.proxies["rabbitmq"].break_()
        await asyncio.sleep(0.5 + place.dice.random())


@row("17", "MongoDB is unreachable for 4 s", 3)
async def mongodb_unreachable(place: Place) -> None:
    await _unreachable(place, "mongodb", 4)


@row("18", "PostgreSQL is unreachable for 4 s", 3)
async def postgresql_unreachable(place: Place) -> None:
    await _unreachable(place, "postgresql", 4)


@row("19", "MongoDB does not respond for 12 s", 5)
async def mongodb_stalled(place: Place) -> None:
    await _stalled(place, "mongodb", 12)


@row("19", "PostgreSQL does not respond for 12 s", 5)
async def postgresql_stalled(place: Place) -> None:
    await _stalled(place, "postgresql", 12)


@row("20", "PostgreSQL is read-only for 6 s", 3)
async def postgresql_read_only(place: Place) -> None:
    connection = await asyncpg.connect(place.postgres_url)
    name = await connection.fetchval("SELECT current_database()")
    try:
        await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        await _end_sessions(connection)
        await asyncio.sleep(6)
    finally:
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        await connection.close()


@row("20", "PostgreSQL ends all sessions 5 times", 2)
async def postgresql_sessions_ended(place: Place) -> None:
    connection = await asyncpg.connect(place.postgres_url)
    for _ in range(5):
        await _end_sessions(connection)
        await asyncio.sleep(0.5)
    await connection.close()


@row("25", "each exchange deleted, one after the other", 12)
async def exchanges_deleted(place: Place) -> None:
    async with _management(place) as management:
        names = [each["name"] for each in (await management.get(_path(place, "exchanges"))).json()]
        for name in (name for name in names if name.startswith("postbus.")):
            await management.delete(_path(place, "exchanges", name))
            await asyncio.sleep(0.2)


@row("25", "every third queue deleted", 12)
async def queues_deleted(place: Place) -> None:
    async with _management(place) as management:
        found = (await management.get(_path(place, "queues"))).json()
        names = [each["name"] for each in found if not each["exclusive"]]
        durable = [name for name in names if not name.endswith(".dead")]
        for name in place.dice.sample(durable, len(durable) // 3):
            await management.delete(_path(place, "queues", name))


@row("21", "garbage on every exchange and queue", 2)
async def garbage(place: Place) -> None:
    async with _management(place) as management:
        exchanges = (await management.get(_path(place, "exchanges"))).json()
        for each in exchanges:
            if each["name"].startswith("postbus."):
                await _publish_garbage(management, place, each["name"])


async def _publish_garbage(management: httpx.AsyncClient, place: Place, exchange: str) -> None:
    path = _path(place, "exchanges", exchange, "bindings", "source")
    keys = {each["routing_key"] for each in (await management.get(path)).json()}
    for key in place.dice.sample(sorted(keys), min(5, len(keys))):
        message = {
            "properties": {},
            "routing_key": key,
            "payload": "/////w==",
            "payload_encoding": "base64",
        }
        await management.post(_path(place, "exchanges", exchange, "publish"), json=message)


async def _unreachable(place: Place, server: str, seconds: float) -> None:
    await place.proxies[server].stop()
    await asyncio.sleep(seconds)
    await place.proxies[server].start()


async def _stalled(place: Place, server: str, seconds: float) -> None:
    place.proxies[server].stall()
    await asyncio.sleep(seconds)
    place.proxies[server].flow()


async def _end_sessions(connection: Any) -> None:
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def _management(place: Place) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=place.management_url, timeout=10)


def _path(place: Place, kind: str, *names: str) -> httpx.URL:
    parts = [place.vhost, *names]
    return httpx.URL("/api/" + "/".join([kind, *(part.replace("/", "%2F") for part in parts)]))


QUICK: Final = (
    "one_worker_killed",
    "all_workers_killed",
    "gateway_killed",
    "broker_unreachable",
    "broker_connections_cut",
    "mongodb_unreachable",
    "postgresql_unreachable",
    "postgresql_read_only",
    "postgresql_sessions_ended",
    "exchanges_deleted",
    "queues_deleted",
    "garbage",
)
"""The rows of `just test-all`: those that take few seconds."""


def pairs(dice: random.Random, count: int) -> list[tuple[str, str]]:
    """Return pairs of faults to inject at the same time."""
    names = sorted(ROWS)
    return [tuple(dice.sample(names, 2)) for _ in range(count)]  # type: ignore[misc]
