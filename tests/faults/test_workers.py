"""A stopped or killed worker: calls fail immediately, and calls work again after its return."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import httpx
import pytest
from websockets.asyncio.client import connect as connect_websocket

from tests.conftest import Place
from tests.people import Person, sign_up
from tests.system import System

Unique = Callable[[str], str]
SERVED = "posts.postbus.posts.v1.PostsService.CreatePost"
"""The queue of the calls of one method."""


async def test_stopped_worker_is_a_503_at_once_until_it_returns(
    system: System, client: httpx.AsyncClient
) -> None:
    assert await system.stop("posts") == 0
    began = time.monotonic()

    answer = await client.get("/v1/posts")
    seconds = time.monotonic() - began
    status, readiness = await system.readiness()
    await system.start("posts")
    await system.until_ready()

    assert (answer.status_code, answer.json()["reason"]) == (503, "NO_ROUTE")
    assert answer.headers["retry-after"] == "1"
    assert seconds < 1
    assert (status, readiness["parts"]["posts"]) == (503, False)
    assert readiness["parts"]["users"] is True
    assert (await client.get("/v1/posts")).status_code == 200


@pytest.mark.parametrize(("worker", "path"), [("users", "/v1/users/x"), ("posts", "/v1/posts")])
async def test_killed_worker_is_a_503_at_once_until_it_returns(
    system: System, client: httpx.AsyncClient, worker: str, path: str
) -> None:
    await system.kill(worker)
    began = time.monotonic()

    answer = await client.get(path)
    seconds = time.monotonic() - began
    await system.start(worker)
    await system.until_ready()

    # The broker may deliver the call before it notices the lost connection.
    assert (answer.status_code, answer.json()["reason"]) == (503, "NO_ROUTE")
    assert seconds < 2
    assert (await client.get(path)).status_code in {200, 404}


async def test_killed_worker_loses_no_acknowledged_write_and_no_event(
    system: System, client: httpx.AsyncClient, unique: Unique
) -> None:
    """Kills `posts` twice under load; every client repeats its request until it has a response."""
    alice = await sign_up(client, unique("alice"))
    answered: dict[str, str] = {}

    async def write(title: str) -> None:
        headers = alice.headers | {"Idempotency-Key": title, "Request-Timeout": "2"}
        while title not in answered:
            answer = await client.post("/v1/posts", json={"title": title}, headers=headers)
            if answer.status_code == 201:
                answered[title] = answer.json()["id"]
            else:
                # 409: a transaction of the killed worker has locks for five seconds
                assert answer.status_code in {409, 503, 504}, answer.text
                await asyncio.sleep(0.1)

    async with listening(system, alice, "postbus.posts.v1.PostCreated") as events:
        writers = [asyncio.create_task(write(unique("kill"))) for _ in range(60)]
        for number in (1, 20):
            async with asyncio.timeout(20):
                while len(answered) < number:  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.01)
            await system.kill("posts")
            await system.start("posts")
            await system.until_ready()
        await asyncio.gather(*writers)

        listed = await client.get("/v1/posts", params={"authorId": alice.id, "pageSize": 100})
        stored = {post["title"]: post["id"] for post in listed.json()["posts"]}
        assert len(listed.json()["posts"]) == 60
        assert stored == answered
        async with asyncio.timeout(15):  # the lease of the killed worker ends after 7
            while not set(stored.values()) <= {each["subject"] for each in events}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@pytest.mark.timeout(300)  # starts five processes while the load takes the processors
async def test_rolling_restart_loses_no_call(
    system: System, place: Place, client: httpx.AsyncClient, unique: Unique
) -> None:
    """Two processes of `posts` are replaced in turn under load; no client repeats a request."""
    alice = await sign_up(client, unique("alice"))
    client.timeout = httpx.Timeout(60)
    patient = alice.headers | {"Request-Timeout": "30"}
    answers: list[tuple[int, str]] = []
    running = True

    async def write() -> None:
        while running:
            title = {"title": "rolling"}
            answer = await client.post("/v1/posts", json=title, headers=patient)
            answers.append((answer.status_code, answer.text))

    other = await system.run("posts")
    await until_served_by(place, 2)
    writers = [asyncio.create_task(write()) for _ in range(16)]
    for _ in range(2):
        assert await system.stop("posts", seconds=30) == 0
        await system.start("posts")
        await until_served_by(place, 2)
        other.terminate()
        assert await other.wait() == 0
        other = await system.run("posts")
        await until_served_by(place, 2)
    running = False
    await asyncio.gather(*writers)
    other.terminate()
    await other.wait()

    assert [answer for answer in answers if answer[0] != 201] == []
    assert len(answers) > 100


async def until_served_by(place: Place, processes: int) -> None:
    """Wait until so many processes of `posts` consume its calls."""
    async with await aio_pika.connect(place.amqp_url) as connection, asyncio.timeout(60):
        channel = await connection.channel()
        while True:
            queue = await channel.declare_queue(SERVED, passive=True)
            if queue.declaration_result.consumer_count == processes:
                return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def listening(system: System, person: Person, type_: str) -> AsyncIterator[list[Any]]:
    """Yield a list to which the events of a type are appended."""
    events: list[Any] = []
    async with connect_websocket(system.websocket_url) as socket:
        await socket.send(json.dumps({"id": "1", "authenticate": {"accessToken": person.token}}))
        await socket.send(json.dumps({"id": "2", "subscribe": {"types": [type_]}}))
        for _ in range(2):
            await socket.recv()

        async def receive() -> None:
            async for frame in socket:
                if event := json.loads(frame).get("event"):
                    events.append(event)

        receiving = asyncio.create_task(receive())
        yield events
        receiving.cancel()
