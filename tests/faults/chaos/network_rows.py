"""Faults of the network, and clients that do not read."""

import asyncio
import json
from contextlib import suppress
from typing import Final

from uuid_utils.compat import uuid7
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from tests.faults.chaos.matrix import GATEWAYS, Place, Row, row

__all__ = ["NETWORK_ROWS"]

_SOCKETS: Final = 20
_LARGE_LIST: Final = {
    "method": "postbus.posts.v1.PostsService.ListPosts",
    "request": {"pageSize": 100},
}


@row(
    "12", "5 ms to each server and back, and up to 25 ms more, for 10 s", part="network", allowed=2
)
async def network_slow(place: Place) -> None:
    for proxy in place.proxies.values():
        proxy.delay, proxy.jitter = 0.005, 0.025
    try:
        await asyncio.sleep(10)
    finally:
        for proxy in place.proxies.values():
            proxy.delay = proxy.jitter = 0.0


@row("12", "bytes arrive one at a time, for 8 s", part="network", allowed=2)
async def network_sliced(place: Place) -> None:
    for proxy in place.proxies.values():
        proxy.sliced = True
    try:
        await asyncio.sleep(8)
    finally:
        for proxy in place.proxies.values():
            proxy.sliced = False


@row(
    "12", "bytes to a server are lost, those of the server are not, 12 s", part="network", allowed=5
)
async def network_one_way(place: Place) -> None:
    proxy = place.proxies[place.dice.choice(sorted(place.proxies))]
    proxy.hold_client_bytes()
    try:
        await asyncio.sleep(12)
    finally:
        proxy.break_()
        proxy.flow()


@row("27", "20 sockets that call and never read, for 10 s", part="clients", allowed=1)
async def sockets_never_read(place: Place) -> None:
    urls = [f"{place.system.url_of(name).replace('http', 'ws')}/ws" for name in GATEWAYS]
    token = place.tokens.token(str(uuid7()))  # the list is public: the user need not exist
    async with asyncio.timeout(30):
        await asyncio.gather(*(_flood(urls[n % 2], token) for n in range(_SOCKETS)))


async def _flood(url: str, token: str) -> None:
    """Send calls for ten seconds, or until the gateway closes the socket or stops reading."""
    frames = [json.dumps({"id": "0", "authenticate": {"accessToken": token}})]
    frames += [json.dumps({"id": str(n), "call": _LARGE_LIST}) for n in range(1, 2000)]
    with suppress(WebSocketException, OSError, TimeoutError):
        async with connect(url, max_queue=1, ping_interval=None, close_timeout=0.1) as socket:
            async with asyncio.timeout(10):
                for frame in frames:
                    await socket.send(frame)
                    await asyncio.sleep(0.005)


NETWORK_ROWS: Final[tuple[Row, ...]] = (
    network_slow,
    network_sliced,
    network_one_way,
    sockets_never_read,
)
