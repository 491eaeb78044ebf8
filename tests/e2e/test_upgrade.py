"""An upgrade to the next version and back, one process at a time, in every order."""

import argparse
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from itertools import permutations
from pathlib import Path
from typing import Final

import aio_pika
import httpx
import jwt
import pytest

from tests.conftest import Place, new_vhost
from tests.e2e.next_version import OLD_SCHEMA, build_next_version
from tests.e2e.rolling import Fleet, Traffic, Version
from tests.e2e.version_checks import Checks
from tests.people import Person, eventually, sign_up
from tests.system import run_system
from tests.tokens import TokenMaker
from tools import dlq
from tools.broker_queues import durable_queues, state_of

pytestmark = pytest.mark.long

Unique = Callable[[str], str]
Capture = pytest.CaptureFixture[str]
POKED_QUEUE: Final = "posts.postbus.users.v1.UserPoked"
ORDERS: Final = tuple(permutations(("gateway", "posts", "users")))


def long_lived(person: Person, tokens: TokenMaker) -> Person:
    """Return the person with a token of the same session that lasts for the whole test."""
    session = jwt.decode(person.token, options={"verify_signature": False})["sid"]
    token = tokens.token(person.id, lifetime=timedelta(hours=1), sid=session)
    return Person(id=person.id, username=person.username, token=token)


@pytest.fixture
async def place(run_id: str, postgres_url: str, mongo_url: str) -> AsyncIterator[Place]:
    """Servers of this test alone, because its migrations concern every process."""
    async with new_vhost(f"{run_id}_upgrade") as amqp_url:
        yield Place(
            amqp_url=amqp_url,
            postgres_url=_named(postgres_url, "upgrade"),
            mongo_url=_named(mongo_url, "upgrade"),
        )


def _named(url: str, suffix: str) -> str:
    parsed = httpx.URL(url)
    return str(parsed.copy_with(path=f"{parsed.path}_{suffix}"))


@pytest.mark.timeout(1200)
async def test_every_order_of_upgrade_and_rollback_answers_every_request(
    place: Place,
    tokens: TokenMaker,
    tmp_path: Path,
    unique: Unique,
    amqp_management_url: str,
    capsys: Capture,
) -> None:
    tree = tmp_path / "next"
    tree.mkdir()
    settings = build_next_version(tree)
    logs = tmp_path / "logs"
    logs.mkdir()
    async with (
        run_system(place.as_environment(), tokens, logs) as system,
        httpx.AsyncClient(base_url=system.url, timeout=15) as client,
    ):
        fleet = Fleet(system, settings)
        people = [await sign_up(client, unique(name)) for name in ("alice", "bob")]
        alice, bob = (long_lived(each, tokens) for each in people)
        traffic = Traffic(alice, bob, unique)
        checks = Checks(fleet, client, alice, unique)
        await traffic.join(fleet.url("old"))
        async with traffic.running():
            await checks.run()
            for service in OLD_SCHEMA:
                await fleet.migrate(service)
            await checks.run()
            for order in ORDERS:
                for service in order:
                    await replace(fleet, traffic, checks, service, "old", "new")
                for service in reversed(order):
                    await replace(fleet, traffic, checks, service, "new", "old")
            await check_left_queue(fleet, checks, place, amqp_management_url, capsys)
            for service, version in OLD_SCHEMA.items():
                await fleet.migrate(service, version)
            await checks.run()
        assert traffic.failures == []
        await require_all_effects(client, traffic, alice)
        await require_empty_queues(place.amqp_url, amqp_management_url)
        logged = fleet.logs()
    assert "Traceback" not in logged
    assert "bus_message_refused" not in logged


async def replace(
    fleet: Fleet, traffic: Traffic, checks: Checks, service: str, before: Version, after: Version
) -> None:
    """Start a process of one version, then stop that of the other."""
    traffic.step = f"{service} from {before} to {after}, beside {fleet.running}"
    print(traffic.step, flush=True)  # noqa: T201  # pytest shows it if the test fails
    await fleet.start(service, after)
    if service == "gateway":
        await traffic.join(fleet.url(after))
    await checks.run()
    if service == "gateway":
        await traffic.leave(fleet.url(before))
        checks.client.base_url = httpx.URL(fleet.url(after))
    await fleet.stop(service, before)
    await checks.run()
    assert traffic.failures == []


async def require_all_effects(client: httpx.AsyncClient, traffic: Traffic, alice: Person) -> None:
    """Require that each event had its effect: on notifications, and on the names in posts."""
    name = {"displayName": "The last name"}
    await client.patch("/v1/me", json=name, headers=alice.headers)

    async def complete() -> bool:
        listed = await client.get("/v1/notifications?includeTotal=true", headers=alice.headers)
        posts = await client.get(f"/v1/posts?authorId={alice.id}&pageSize=1")
        shown = posts.json()["posts"][0]["author"]["displayName"]
        return bool(listed.json()["total"] == traffic.notified and shown == "The last name")

    await eventually(complete, 30)


async def require_empty_queues(amqp_url: str, management_url: str) -> None:
    """Require that no consumer has left an event, alive or dead."""
    async with await aio_pika.connect(amqp_url) as connection:
        for queue in await durable_queues(management_url, amqp_url):

            async def empty(name: str = queue) -> bool:
                return ((await state_of(connection, name)) or (0, 0))[0] == 0

            if queue != POKED_QUEUE:
                await eventually(empty, 20)


async def check_left_queue(
    fleet: Fleet, checks: Checks, place: Place, management_url: str, capsys: Capture
) -> None:
    """After a rollback of a consumer its queue grows; the operator sees it, and deletes it."""

    async def run(*arguments: str) -> int:
        parser = argparse.ArgumentParser()
        dlq.add_arguments(parser)
        return await dlq.run(place.amqp_url, management_url, parser.parse_args(arguments))

    for service in ("users", "gateway"):
        await fleet.start(service, "new")
    await checks.poke_a_user()
    capsys.readouterr()
    assert await run() == 0
    listed = capsys.readouterr().out
    assert f"{POKED_QUEUE}  has no consumer" in listed

    assert await run("remove", POKED_QUEUE, "--yes") == 0
    await checks.poke_a_user()
    async with await aio_pika.connect(place.amqp_url) as connection:
        assert await state_of(connection, POKED_QUEUE) is None
        assert await state_of(connection, f"{POKED_QUEUE}.dead") is None
    for service in ("gateway", "users"):
        await fleet.stop(service, "new")
