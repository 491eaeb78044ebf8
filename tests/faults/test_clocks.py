"""The clock of one process is wrong: at 30 seconds nothing changes, at 10 minutes only tokens.

They are valid for 10 minutes, and accepted for 30 seconds more.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from pymongo import AsyncMongoClient

from tests.clocks import clock_settings, find_faketime
from tests.conftest import Place
from tests.people import PASSWORD, Client, Person, eventually, sign_up
from tests.system import System
from tools.servers.errors import ServersUnavailableError

pytestmark = pytest.mark.long

Unique = Callable[[str], str]


@pytest.fixture(scope="session")
def faketime() -> str:
    """Return libfaketime, of the system or from its package."""
    try:
        return find_faketime()
    except ServersUnavailableError as error:
        pytest.skip(f"libfaketime cannot be installed: {error}")


@asynccontextmanager
async def wrong_clock(
    system: System, service: str, seconds: int, faketime: str
) -> AsyncIterator[None]:
    """Run a service with its clock ahead by `seconds`; its monotonic clock is right."""
    await system.stop(service)
    await system.start(service, **clock_settings(faketime, seconds))
    try:
        await system.until_ready()  # readiness does not depend on clocks
        yield
    finally:
        await system.stop(service)
        await system.start(service)
        await system.until_ready()


def skews(system: System, service: str) -> list[dict[str, Any]]:
    """Return the log lines of a service about clocks."""
    lines = [json.loads(line) for line in system.log(service).splitlines() if "clock.skew" in line]
    return [line for line in lines if line["event"] == "clock.skew"]


@pytest.mark.parametrize(
    ("service", "seconds"),
    [
        ("posts", 30),
        pytest.param("posts", -30, marks=pytest.mark.long),
        pytest.param("users", 30, marks=pytest.mark.long),
        ("users", -30),
        pytest.param("gateway", 30, marks=pytest.mark.long),
        pytest.param("gateway", -30, marks=pytest.mark.long),
    ],
)
@pytest.mark.timeout(120)
async def test_clock_that_is_wrong_by_30_seconds_changes_no_answer(
    system: System,
    client: httpx.AsyncClient,
    unique: Unique,
    faketime: str,
    service: str,
    seconds: int,
) -> None:
    async with wrong_clock(system, service, seconds, faketime):
        alice, bob = [await sign_up(client, unique(name)) for name in ("alice", "bob")]
        as_alice, as_bob = Client(client, alice), Client(client, bob)
        post = await as_alice.done("POST", "/v1/posts", {"title": "Hi"})
        path = f"/v1/posts/{post['id']}"
        liked = await as_bob.done("PUT", f"{path}/like")
        await as_bob.done("PUT", f"/v1/users/{alice.username}/follow")
        feed = await as_bob.done("GET", "/v1/feed")
        tokens = await Client(client).done(
            "POST", "/v1/auth/login", {"login": alice.username, "password": PASSWORD}
        )
        refreshed = await Client(client).done(
            "POST", "/v1/auth/refresh", {"refreshToken": tokens["refreshToken"]}
        )
        me = await client.get(
            "/v1/me", headers={"Authorization": f"Bearer {refreshed['accessToken']}"}
        )
        removed = await as_alice.send("DELETE", path)

    assert liked["likeCount"] == 1
    assert [each["id"] for each in feed["posts"]] == [post["id"]]
    assert (me.status_code, removed.is_success) == (200, True)


@pytest.mark.parametrize(
    ("service", "seconds"),
    [
        ("posts", 660),
        pytest.param("users", 600, marks=pytest.mark.long),
        pytest.param("gateway", 660, marks=pytest.mark.long),
        pytest.param("gateway", -600, marks=pytest.mark.long),
    ],
)
@pytest.mark.timeout(120)
async def test_clock_that_is_wrong_by_10_minutes_fails_tokens_only_and_is_named_in_the_log(
    system: System,
    client: httpx.AsyncClient,
    place: Place,
    unique: Unique,
    faketime: str,
    service: str,
    seconds: int,
) -> None:
    await restart_gateway(system)
    before = len(skews(system, "gateway"))
    alice = await sign_up(client, unique("alice"))
    post = await Client(client, alice).done("POST", "/v1/posts", {"title": "Hi"})
    async with wrong_clock(system, service, seconds, faketime):
        bob = await sign_up(client, unique("bob"))
        public = await client.get(f"/v1/posts/{post['id']}")
        private = await client.post("/v1/posts", json={"title": "Hi"}, headers=bob.headers)

    assert public.status_code == 200
    assert private.status_code == 401
    assert private.json()["reason"] in {"TOKEN_EXPIRED", "TOKEN_INVALID"}
    found = skews(system, "gateway")[before:]
    expected = -seconds if service == "gateway" else seconds
    process = "posts" if service == "gateway" else service
    assert any(line["process"] == process and abs(line["seconds"] - expected) < 5 for line in found)
    if service == "posts":
        assert any(abs(line["seconds"] + seconds) < 5 for line in skews(system, "posts"))


async def restart_gateway(system: System) -> None:
    """Let the gateway log the clock of each worker again, which it does once a minute."""
    await system.stop("gateway")
    await system.start("gateway")
    await system.until_ready()


DAY, YEAR = 86_400, 31_536_000


def seconds_until(year: int) -> int:
    return round((datetime(year, 6, 1, tzinfo=UTC) - datetime.now(UTC)).total_seconds())


@pytest.mark.parametrize(
    ("service", "seconds"),
    [
        ("posts", -DAY),
        ("posts", -10 * YEAR),
        ("posts", seconds_until(2039)),
        ("users", DAY),
        ("users", -10 * YEAR),
        ("users", seconds_until(2039)),
        ("gateway", -10 * YEAR),
        ("gateway", seconds_until(2039)),
    ],
)
@pytest.mark.timeout(120)
async def test_process_that_starts_in_another_year_serves_all_but_tokens_and_destroys_nothing(
    system: System,
    client: httpx.AsyncClient,
    unique: Unique,
    faketime: str,
    service: str,
    seconds: int,
) -> None:
    await restart_gateway(system)
    alice, bob = [await sign_up(client, unique(name)) for name in ("alice", "bob")]
    sessions = [await log_in(client, bob)]
    post = await Client(client, alice).done("POST", "/v1/posts", {"title": "Hi"})
    path = f"/v1/posts/{post['id']}"
    before = len(skews(system, "gateway"))

    async with wrong_clock(system, service, seconds, faketime):
        migrated = await system.run(
            "posts" if service == "gateway" else service,
            "migrate",
            stdout=None,
            **clock_settings(faketime, seconds),
        )
        assert await migrated.wait() == 0
        await sign_up(client, unique("carl"))
        sessions.append(await log_in(client, bob))
        public = [await client.get(each) for each in (path, "/v1/posts", "/v1/tags")]
        follow = await Client(client, bob).send("PUT", f"/v1/users/{alice.username}/follow")
        private = await Client(client, bob).send("POST", "/v1/posts", {"title": "Hi"})

    assert [each.status_code for each in public] == [200, 200, 200]
    # `users` verifies the token to follow, `posts` to write
    assert (follow.is_success, private.is_success) == (service == "posts", service == "users")
    named = "posts" if service == "gateway" else service
    expected = -seconds if service == "gateway" else seconds
    found = skews(system, "gateway")[before:]
    assert any(each["process"] == named and abs(each["seconds"] - expected) < 60 for each in found)
    for session in sessions:
        await Client(client).done(
            "POST", "/v1/auth/refresh", {"refreshToken": session["refreshToken"]}
        )
    assert (await client.get(path)).json()["title"] == "Hi"
    if follow.is_success:
        url = system.databases("posts")["POSTBUS_MONGO_URL"]
        async with AsyncMongoClient[dict[str, Any]](url, tz_aware=True) as mongo:
            notifications = mongo.get_default_database()["notifications"]

            async def kept() -> bool:
                stored = await notifications.find_one({"user_id": alice.id})
                if stored is None:
                    return False
                left: timedelta = stored["expires_at"] - datetime.now(UTC)
                return timedelta(days=89) < left <= timedelta(days=90)

            await eventually(kept)


async def log_in(client: httpx.AsyncClient, person: Person) -> dict[str, Any]:
    account = {"login": person.username, "password": PASSWORD}
    return await Client(client).done("POST", "/v1/auth/login", account)


@pytest.mark.timeout(120)
@pytest.mark.long
async def test_stored_times_are_those_of_the_database(
    system: System, client: httpx.AsyncClient, place: Place, unique: Unique, faketime: str
) -> None:
    """The lease of the outbox and the age of the inbox do not depend on the clock of a worker."""
    url = system.databases("posts")["POSTBUS_MONGO_URL"]
    async with AsyncMongoClient[dict[str, Any]](url, tz_aware=True) as mongo:
        database = mongo.get_default_database()
        await database["inbox"].delete_many({})
        async with wrong_clock(system, "posts", 20, faketime):
            alice = await sign_up(client, unique("alice"))
            await Client(client, alice).done("POST", "/v1/posts", {"title": "Hi"})
            soon = (await database.command("hello"))["localTime"] + timedelta(seconds=10)
            later = await database["inbox"].count_documents({"done_at": {"$gt": soon}})

    assert later == 0
