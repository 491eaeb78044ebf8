"""The time after a lost connection in which a service does not answer."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from pydantic import SecretStr

from postbus.bus.v1 import Reply
from postbus.registry import EVENTS, METHODS
from shared.bus import Call
from shared.bus.amqp import connect
from shared.bus.amqp.amqp_bus import AmqpBus
from shared.errors import ServiceError
from shared.wire import encode
from tests.buses import ignore
from tests.conftest import new_vhost
from tests.proxy import Proxy

ROUTES = [name for name, method in METHODS.items() if method.worker == "posts"]
DELAY = 0.005
"""Seconds to the broker, in each direction."""


async def echo(_route: str, _body: bytes, _service: str) -> bytes:
    return encode(Reply(payload=b"here"))


@pytest.fixture
async def url(unique: Callable[[str], str]) -> AsyncIterator[str]:
    async with new_vhost(unique("test_")) as url:
        yield url


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    async with Proxy.open(url) as proxy:
        yield proxy


async def serve_everything(bus: AmqpBus) -> None:
    """Serve and consume as `posts` does, with a consumer for each event."""
    await bus.wait_ready()
    await bus.read_stream("revocations", ["postbus.posts.v1.Revoked"], ignore, seconds=60)
    await asyncio.gather(
        *(bus.subscribe([event], ignore, queue=f"posts.{event}") for event in EVENTS)
    )
    await bus.serve("posts", ROUTES, echo)


async def until_answered(bus: AmqpBus) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await bus.call(ROUTES[0], Call.new(b"", budget=5))
            except ServiceError:
                await asyncio.sleep(0.01)
            else:
                return


async def test_calls_are_answered_after_30_round_trips(url: str, proxy: Proxy) -> None:
    behind = SecretStr(proxy.url)
    async with connect(behind, "posts") as posts, connect(SecretStr(url), "gateway") as gateway:
        await serve_everything(posts)
        await until_answered(gateway)

        session = posts._session
        proxy.turns, proxy.delay = 0, DELAY
        proxy.break_()
        while posts._session in (None, session):  # noqa: ASYNC110  # until the first call is served
            await asyncio.sleep(0)
        turns = proxy.turns
        await until_answered(gateway)

        assert turns <= 30
        assert len(posts._consumers) == len(EVENTS) + 2
        async with asyncio.timeout(20):
            while not all(each.active for each in posts._consumers):  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)
