"""Faults that several rows inject in different servers."""

import asyncio
import signal
from urllib.parse import quote

import httpx

from tests.faults.chaos.matrix import NotPossibleError, Place

__all__ = [
    "end_and_start",
    "management",
    "path_of",
    "require_process",
    "stalled",
    "unreachable",
]


async def unreachable(place: Place, server: str, seconds: float) -> None:
    """Refuse and break the connections to a server."""
    await place.proxies[server].stop()
    try:
        await asyncio.sleep(seconds)
    finally:
        await place.proxies[server].start()


async def stalled(place: Place, server: str, seconds: float) -> None:
    """Hold all bytes between a server and its clients."""
    place.proxies[server].stall()
    try:
        await asyncio.sleep(seconds)
    finally:
        place.proxies[server].flow()


async def end_and_start(place: Place, server: str, number: signal.Signals) -> None:
    """End a server by a signal, and start it again two seconds later."""
    require_process(place, server)
    await place.servers.end(server, number)
    try:
        await asyncio.sleep(2)
    finally:
        await place.servers.start(server)


def require_process(place: Place, server: str) -> None:
    """Raise NotPossibleError unless the server is a process of this clone."""
    if server not in place.servers:
        raise NotPossibleError(f"{server} is not a process that this command has started")


def management(place: Place) -> httpx.AsyncClient:
    """Return a client of RabbitMQ's management API."""
    return httpx.AsyncClient(base_url=place.management_url, timeout=10)


def path_of(place: Place, kind: str, *names: str) -> str:
    """Return the path of the exchanges or queues of the virtual host, or of one."""
    return "/".join(["/api", kind, place.vhost, *(quote(name, safe="") for name in names)])
