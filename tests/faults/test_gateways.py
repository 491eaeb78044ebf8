"""Gateways that start and stop: their first request is served, and they end normally."""

import asyncio
import itertools
import signal
from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest

from shared.tasks import end
from tests.people import sign_up
from tests.system import System, free_port

Unique = Callable[[str], str]
REQUESTS: Final[tuple[tuple[str, str, dict[str, Any] | None], ...]] = (
    ("GET", "/v1/me", None),
    ("GET", "/v1/posts", None),
    ("PATCH", "/v1/me", {"bio": "Restarting"}),
    ("POST", "/v1/posts", {"title": "Restarting"}),
)


async def first_response(url: str, path: str, **headers: str) -> httpx.Response:
    """Request a path until the server listens, and return the first response."""
    async with httpx.AsyncClient(base_url=url) as client, asyncio.timeout(30):
        while True:
            try:
                return await client.get(path, headers=headers)
            except httpx.ConnectError:
                await asyncio.sleep(0.005)


class Load:
    """Requests to several gateways in turn; a refused connection leads to the next gateway."""

    def __init__(self, urls: list[str], headers: dict[str, str]) -> None:
        self.failures: list[str] = []
        self.done = 0
        self._urls = itertools.cycle(urls)
        self._requests = itertools.cycle(REQUESTS)
        self._headers = headers

    async def run(self) -> None:
        """Request until cancelled, each time by a new connection."""
        while True:
            verb, path, body = next(self._requests)
            async with httpx.AsyncClient(base_url=next(self._urls), timeout=20) as client:
                try:
                    response = await client.request(verb, path, json=body, headers=self._headers)
                except httpx.ConnectError:
                    continue
            self.done += 1
            if response.status_code >= 400:
                self.failures.append(response.text)


async def until_restarted(system: System, name: str, ready: int) -> None:
    """Wait until a gateway listens, or a worker was ready more than `ready` times."""
    async with asyncio.timeout(30):
        if name.startswith("gateway"):
            await first_response(system.url_of(name), "/healthz")
            return
        while system.log(name).count("worker.ready") <= ready:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.05)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_restart_of_all_processes_in_turn_has_no_errors(
    system: System, client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))
    second = ["users-2", "posts-2", "gateway-2"]
    await system.start(*second)
    for name in second:
        await until_restarted(system, name, 0)
    load = Load([system.url_of("gateway"), system.url_of("gateway-2")], alice.headers)
    running = [asyncio.create_task(load.run()) for _ in range(8)]
    try:
        for name in ("users", "posts", "gateway", *second):
            ready = system.log(name).count("worker.ready")
            assert await system.stop(name, 30) == 0
            await system.start(name)
            await until_restarted(system, name, ready)
    finally:
        await end(*running)
        for name in second:
            await system.stop(name, 30)

    assert load.failures == []
    assert load.done > 100


async def test_first_request_to_a_new_gateway_is_served(
    system: System, client: httpx.AsyncClient, unique: Unique
) -> None:
    """A gateway that listened before it is connected would answer 503."""
    alice = await sign_up(client, unique("alice"))
    for number in (signal.SIGTERM, signal.SIGINT):
        port = free_port()
        gateway = await system.run("gateway", POSTBUS_PORT=str(port))
        response = await first_response(f"http://127.0.0.1:{port}", "/v1/me", **alice.headers)
        gateway.send_signal(number)

        assert (response.status_code, response.json()["id"]) == (200, alice.id)
        assert await gateway.wait() == 0


@pytest.mark.parametrize(
    "listens",
    [
        pytest.param(False, id="starting", marks=pytest.mark.long),
        pytest.param(True, id="listening"),
    ],
)
async def test_gateway_without_a_broker_listens_after_5_seconds_and_ends_normally(
    system: System, listens: bool
) -> None:
    port, url = free_port(), f"amqp://gateway:x@127.0.0.1:{free_port()}/"
    name = "gateway-listening" if listens else "gateway-starting"
    gateway = await system.run(name, POSTBUS_PORT=str(port), POSTBUS_AMQP_URL=url)
    at = f"http://127.0.0.1:{port}"
    if listens:
        assert (await first_response(at, "/healthz")).status_code == 200
        ready = await first_response(at, "/readyz")
        assert ready.status_code == 503
        assert "not connected" in ready.json()["missing"]["rabbitmq"]
    else:
        async with asyncio.timeout(20):
            while "bus.not_connected" not in system.log(name):  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)
    gateway.send_signal(signal.SIGTERM)
    async with asyncio.timeout(15):
        assert await gateway.wait() == 0
