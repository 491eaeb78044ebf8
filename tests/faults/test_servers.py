"""An unavailable server: 503 within a second, readiness names it, recovery without a restart."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import aio_pika
import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.conftest import Place, new_vhost
from tests.people import Client, ask, eventually, sign_up
from tests.proxy import Proxy
from tests.system import System, run_system
from tests.tokens import TokenMaker

Unique = Callable[[str], str]
Fragile = tuple[System, dict[str, Proxy]]

DELAYS_MS = (1_000, 5_000, 30_000, 120_000, 600_000)
PARTS = {"rabbitmq": "rabbitmq", "postgresql": "users.postgresql", "mongodb": "posts.mongodb"}


@pytest.fixture(scope="module")
async def fragile(
    place: Place, run_id: str, tokens: TokenMaker, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fragile]:
    """Return a system with its own virtual host and a proxy in front of each server."""
    proxies, environment = {}, {}
    async with AsyncExitStack() as stack:
        vhost = await stack.enter_async_context(new_vhost(f"{run_id}_fragile"))
        own_place = replace(place, amqp_url=vhost)
        urls = dict(zip(PARTS, own_place.as_environment().items(), strict=True))
        for name, (variable, url) in urls.items():
            target = httpx.URL(url)
            assert target.port is not None
            proxies[name] = Proxy(target.host, target.port)
            await proxies[name].start()
            stack.push_async_callback(proxies[name].stop)
            environment[variable] = str(target.copy_with(port=proxies[name].port))
        logs = tmp_path_factory.mktemp("fragile")
        yield await stack.enter_async_context(run_system(environment, tokens, logs)), proxies


@pytest.mark.parametrize("server", PARTS)
async def test_unavailable_server_is_a_503_until_it_returns(
    fragile: Fragile, server: str, unique: Unique
) -> None:
    system, proxies = fragile
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as client:
        alice = await sign_up(client, unique("alice"))

        async def answers() -> list[tuple[int, float]]:
            """Return status and seconds of a request that needs each database."""
            taken = []
            for url in ("/v1/me", "/v1/posts"):
                began = time.monotonic()
                answer = await client.get(url, headers=alice.headers)
                taken.append((answer.status_code, time.monotonic() - began))
            return taken

        await proxies[server].stop()
        broken = await answers()
        status, readiness = await system.readiness()
        await proxies[server].start()
        await system.until_ready()
        mended = await answers()

    failing = [seconds for code, seconds in broken if code == 503]
    assert len(failing) == (2 if server == "rabbitmq" else 1), broken
    assert max(failing) < 1
    assert status == 503
    assert readiness["parts"][PARTS[server]] is False
    assert [code for code, _ in mended] == [200, 200]


async def test_subscriber_that_may_have_missed_events_is_disconnected(
    fragile: Fragile, unique: Unique
) -> None:
    system, proxies = fragile
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as client:
        alice = await sign_up(client, unique("alice"))
    async with connect(system.websocket_url) as socket:
        await ask(socket, {"id": "1", "authenticate": {"accessToken": alice.token}})
        await ask(socket, {"id": "2", "subscribe": {"types": ["postbus.posts.v1.PostCreated"]}})

        await proxies["rabbitmq"].stop()
        await proxies["rabbitmq"].start()

        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), timeout=20)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1013, "EVENTS_INTERRUPTED")
    await system.until_ready()


@pytest.mark.long
@pytest.mark.parametrize("outage", ["stalled", "stopped"])
async def test_events_of_an_outage_have_their_effects_within_3_seconds_after_it(
    fragile: Fragile, unique: Unique, outage: str
) -> None:
    system, proxies = fragile
    mongodb = proxies["mongodb"]
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as client:
        author, *readers = [await sign_up(client, unique("user")) for _ in range(5)]

        if outage == "stalled":
            mongodb.stall()
        else:
            await mongodb.stop()
        began = time.monotonic()
        for reader in readers:  # `posts` stores the follow, and a notification
            path = f"/v1/users/{author.username}/follow"
            await Client(client, reader).done("PUT", path)
        await asyncio.sleep(began + 20 - time.monotonic())  # the length of the outage
        if outage == "stalled":
            mongodb.flow()
        else:
            await mongodb.start()
        returned = time.monotonic()

        async def all_notified() -> bool:
            answer = await client.get("/v1/notifications", headers=author.headers)
            return answer.is_success and len(answer.json()["notifications"]) == len(readers)

        await eventually(all_notified)
        seconds = time.monotonic() - returned
        delayed = [await messages_in(system, f"posts.delay.{each}") for each in DELAYS_MS]
    assert (seconds < 3, delayed) == (True, [0, 0, 0, 0, 0]), seconds


async def messages_in(system: System, queue: str) -> int:
    """Return the number of messages in a queue of the system."""
    async with await aio_pika.connect(system._environment["POSTBUS_AMQP_URL"]) as connection:
        declared = await (await connection.channel()).declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


async def test_worker_stops_in_time_while_its_database_is_unavailable(
    fragile: Fragile, unique: Unique
) -> None:
    system, proxies = fragile
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as client:
        await proxies["mongodb"].stop()
        await sign_up(client, unique("alice"))  # `posts` retries to store the author

        assert await system.stop("posts") == 0

        await proxies["mongodb"].start()
        await system.start("posts")
        await system.until_ready()
