"""A cluster of three RabbitMQ nodes: each is stopped and killed in turn, under load."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from secrets import token_hex
from typing import Any, Final

import httpx
import pytest

from postbus.bus.v1 import Event
from shared.wire import decode
from tests.conftest import Place
from tests.faults.chaos.checker import check
from tests.faults.chaos.history import History, Load
from tests.faults.chaos.state import State, read_databases
from tests.people import Person, sign_up
from tests.system import System, run_system
from tests.tokens import TokenMaker
from tools.accounts.rights import OPERATOR
from tools.accounts.set_up import set_up_broker_accounts
from tools.broker_queues import open_connection
from tools.paths import SECRETS
from tools.secrets import Secrets
from tools.servers.addresses import service_url
from tools.servers.processes import stop_all, wait_until
from tools.servers.rabbitmq import RabbitMQ
from tools.servers.rabbitmq_node import Node

pytestmark = pytest.mark.long

Unique = Callable[[str], str]
NODES: Final = 3
SERVED_SECONDS: Final = 5.0
"""Longest time without a good response of one kind after the loss of a node."""
WATCHED_SECONDS: Final = 8.0
"""Time after the loss of a node in which the responses are watched."""
PEOPLE: Final = 12
PAUSE: Final = 0.6
"""Seconds between two requests of a person, on average."""


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RabbitMQ]:
    folder = tmp_path_factory.mktemp("cluster") / "rabbitmq"
    cluster = RabbitMQ(token_hex(16), nodes=NODES, folder=folder)
    try:
        await asyncio.to_thread(cluster.launch)
        await until_joined(cluster)
        yield cluster
    finally:
        await asyncio.to_thread(stop_all, cluster.daemons, grace=2)


async def until_joined(cluster: RabbitMQ) -> None:
    joined = await asyncio.to_thread(cluster.wait_ready, 90)
    assert joined, [node.daemon.tail() for node in cluster.nodes]


@pytest.fixture(scope="module")
def own_place(place: Place, cluster: RabbitMQ, run_id: str) -> Place:
    """Return the cluster, and databases that no other system of this run uses."""
    secrets = Secrets.load_or_create(SECRETS)
    set_up_broker_accounts(cluster.management_url, "/", secrets.accounts)
    path = f"/{run_id}_cluster"
    return replace(
        place,
        amqp_url=service_url(cluster.amqp_url, "rabbitmq", OPERATOR, secrets),
        postgres_url=str(httpx.URL(place.postgres_url).copy_with(path=path)),
        mongo_url=str(httpx.URL(place.mongo_url).copy_with(path=path)),
    )


@pytest.fixture(scope="module")
async def doubled(
    own_place: Place, tokens: TokenMaker, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """Return a system with two processes of each kind."""
    logs = tmp_path_factory.mktemp("cluster_logs")
    async with run_system(own_place.as_environment(), tokens, logs) as system:
        await system.start("posts-2", "users-2", "gateway-2")
        await system.until_ready(40)
        await system.until_ready(40, url=system.url_of("gateway-2"))
        yield system


@dataclass(slots=True)
class Probe:
    """Requests of one kind through one gateway, one after the other."""

    client: httpx.AsyncClient
    headers: dict[str, str]
    verb: str
    path: str
    body: dict[str, Any] | None
    unique: Unique
    good_at: float = 0.0
    longest: float = 0.0
    """Longest time between two good responses, in seconds."""
    bad: dict[str, int] = field(default_factory=dict)
    """Number of bad responses by status and reason."""

    async def run(self) -> None:
        """Send requests until cancelled."""
        self.good_at = time.monotonic()
        while True:
            key = {"Idempotency-Key": self.unique("probe"), "Request-Timeout": "2"}
            try:
                response = await self.client.request(
                    self.verb, self.path, json=self.body, headers=self.headers | key
                )
                good, reason = (
                    response.is_success,
                    response.text.partition('"reason":"')[2].partition('"')[0],
                )
            except httpx.HTTPError as error:
                good, reason = False, repr(error)
            now = time.monotonic()
            self.longest = max(self.longest, now - self.good_at)
            if good:
                self.good_at = now
            else:
                self.bad[reason] = self.bad.get(reason, 0) + 1
            await asyncio.sleep(0.2)


async def probes(system: System, unique: Unique) -> list[Probe]:
    """Return probes of reads and writes of both services, through both gateways."""
    found = []
    for url in (system.url, system.url_of("gateway-2")):
        client = httpx.AsyncClient(base_url=url, timeout=10)
        person = await sign_up(client, unique("probe"))
        post = await new_post(client, person, unique("probe"))
        for verb, path, body in (
            ("GET", "/v1/me", None),
            ("PATCH", "/v1/me", {"displayName": "a name"}),
            ("GET", f"/v1/posts/{post}", None),
            ("PATCH", f"/v1/posts/{post}", {"summary": "a text"}),
        ):
            found.append(Probe(client, person.headers, verb, path, body, unique))
    return found


async def new_post(client: httpx.AsyncClient, person: Person, title: str) -> str:
    response = await client.post("/v1/posts", json={"title": title}, headers=person.headers)
    post_id: str = response.raise_for_status().json()["id"]
    return post_id


async def unserved(system: System, unique: Unique, node: Node, number: signal.Signals) -> float:
    """End a node by a signal; return the longest time without a good response of one kind."""
    asked = await probes(system, unique)
    running = [asyncio.create_task(probe.run()) for probe in asked]
    await asyncio.sleep(1)  # a time without a fault
    pid = node.daemon.pid()
    assert pid is not None
    os.kill(pid, number)
    await asyncio.sleep(WATCHED_SECONDS)
    end = time.monotonic()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await asyncio.gather(*(probe.client.aclose() for probe in asked))
    for probe in asked:
        print(f"{probe.verb} {probe.path}: {probe.longest:.2f} s, {probe.bad}")  # noqa: T201
    return max(max(probe.longest, end - probe.good_at) for probe in asked)


async def end_and_return(
    cluster: RabbitMQ, system: System, unique: Unique, node: Node, number: signal.Signals
) -> float:
    """End a node under load and start it again; return the time as `unserved`."""
    seconds = await unserved(system, unique, node, number)
    ended = await asyncio.to_thread(wait_until, lambda: node.daemon.pid() is None, seconds=30)
    assert ended
    await asyncio.to_thread(cluster.start, [node])
    await until_joined(cluster)
    return seconds


@pytest.mark.timeout(900)
async def test_calls_and_events_outlive_each_node_of_a_cluster(
    cluster: RabbitMQ, own_place: Place, doubled: System, unique: Unique
) -> None:
    async with httpx.AsyncClient(base_url=doubled.url, timeout=10) as client:
        people = [await sign_up(client, unique("cluster")) for _ in range(PEOPLE)]
        posts = [await new_post(client, people[0], unique("base")) for _ in range(3)]
    urls = [doubled.url, doubled.url_of("gateway-2")]
    load = Load(urls, people, posts, unique, random.Random())  # noqa: S311
    running = asyncio.create_task(load.run(PAUSE))
    times = {}

    for number in (signal.SIGTERM, signal.SIGKILL):
        for node in cluster.nodes:
            seconds = await end_and_return(cluster, doubled, unique, node, number)
            times[f"{number.name} of {node.name}"] = round(seconds, 2)
            print(f"cluster: {number.name} of {node.name}: {seconds:.2f} s")  # noqa: T201
    load.stop.set()
    await running
    await until_settled(cluster)

    print(times, summary(load.history))  # noqa: T201  # pytest shows it if the test fails
    state = State()
    await read_databases(
        database(own_place.mongo_url, "posts"), database(own_place.postgres_url, "users"), state
    )
    found = check(load.history, state)
    found.late.clear()  # other processes of the machine delay the tests
    assert found.empty, found
    await until_in_stream(own_place.amqp_url, created(load.history))
    assert await dead_letters(cluster) == []
    assert (await doubled.output("posts", "repair")).splitlines()[:-1] == []
    assert " 0 with wrong counters" in await doubled.output("users", "repair")
    # twice, for the same reason
    assert max(times.values()) <= 2 * SERVED_SECONDS, times


def database(url: str, service: str) -> str:
    parsed = httpx.URL(url)
    return str(parsed.copy_with(path=f"{parsed.path}_{service}"))


def summary(history: History) -> dict[str, int]:
    """Return the numbers of responses by status and reason."""
    found: dict[str, int] = {}
    for each in history.tries():
        name = f"{each.status} {each.reason}".strip()
        found[name] = found.get(name, 0) + 1
    return found


def created(history: History) -> set[str]:
    """Return the ids of the posts whose creation was acknowledged."""
    return {write.body["id"] for write in history.writes if write.kind == "post" and write.body}


async def until_in_stream(amqp_url: str, post_ids: set[str]) -> None:
    """Read the stream of all events until it has shown the creation of every post."""
    missing = set(post_ids)
    async with await open_connection(amqp_url) as connection:
        channel = await connection.channel()
        await channel.set_qos(100)
        stream = await channel.get_queue("gateway.events", ensure=False)
        async with stream.iterator(arguments={"x-stream-offset": "first"}, timeout=20) as messages:
            async for message in messages:
                await message.ack()
                if message.routing_key == "postbus.posts.v1.PostCreated":
                    missing.discard(decode(Event, message.body).subject)
                if not missing:
                    return


async def until_settled(cluster: RabbitMQ) -> None:
    """Wait until no queue of a consumer and no delay queue has a message."""
    async with asyncio.timeout(90):
        while await waiting(cluster):
            pass


async def waiting(cluster: RabbitMQ) -> list[str]:
    """Return the queues with messages; the counts are up to five seconds old."""
    await asyncio.sleep(5)
    queues = await asyncio.to_thread(cluster.nodes[0].get, "queues")
    return [
        each["name"]
        for each in queues or [{"name": "unknown"}]
        if each.get("type") != "stream" and each.get("messages", 1)
        if not each["name"].endswith(".dead")
    ]


async def dead_letters(cluster: RabbitMQ) -> list[str]:
    queues = await asyncio.to_thread(cluster.nodes[0].get, "queues")
    return [each["name"] for each in queues if each["name"].endswith(".dead") and each["messages"]]
