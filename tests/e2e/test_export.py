"""The export of one's own data: complete, private, and with bounded memory."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from pymongo import AsyncMongoClient

from postbus.registry import METHODS
from tests.people import PASSWORD, Client, Person, eventually, sign_up
from tests.system import System

Unique = Callable[[str], str]
Item = dict[str, Any]
PATH: Final = "/v1/me/export"
MAX_GROWTH_MIB: Final = 20
"""The exports have 40 MB or more."""
COMMON: Final = {
    "comment": {"post_id": "x", "version": 1, "created_at": 1, "updated_at": 1},
    "post": {
        "slug": "x",
        "title": "x",
        "tags": [],
        "tag_keys": [],
        "words": [],
        "status": "draft",
        "created_at": 1,
        "updated_at": 1,
        "version": 1,
        "shape": 2,
    },
}


async def exported(client: httpx.AsyncClient, person: Person, after: str = "") -> list[Item]:
    """Return the items of an export."""
    async with client.stream(
        "GET", PATH, params={"after": after}, headers=person.headers
    ) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line)["result"] async for line in response.aiter_lines()]


def of_kind(items: list[Item], kind: str) -> list[Item]:
    """Return the items of one kind."""
    return [item[kind] for item in items if kind in item]


async def create_everything(client: httpx.AsyncClient, alice: Person, bob: Person) -> list[str]:
    """Create something of each kind; return the ids of alice's post, draft and comment."""
    as_alice, as_bob = Client(client, alice), Client(client, bob)
    post = (await as_alice.done("POST", "/v1/posts", {"title": "Hers", "body": "Text"}))["id"]
    draft = {"title": "Unfinished", "body": "Secret", "status": "POST_STATUS_DRAFT"}
    draft_id = (await as_alice.done("POST", "/v1/posts", draft))["id"]
    bobs = (await as_bob.done("POST", "/v1/posts", {"title": "His"}))["id"]
    await as_bob.done("POST", "/v1/posts", draft | {"title": "Not hers"})
    path = f"/v1/posts/{bobs}"
    comment = (await as_alice.done("POST", f"{path}/comments", {"body": "Nice"}))["id"]
    await as_alice.done("PUT", f"{path}/like")
    await as_bob.done("PUT", f"/v1/posts/{post}/like")
    await as_bob.done("POST", f"/v1/posts/{post}/comments", {"body": "Not her words"})
    await as_alice.done("PUT", f"/v1/users/{bob.username}/follow")

    async def notified() -> bool:
        found = await as_alice.done("GET", "/v1/notifications")
        return len(found["notifications"]) == 2

    await eventually(notified)
    return [post, draft_id, comment, bobs]


@pytest.fixture
async def alice(client: httpx.AsyncClient, unique: Unique) -> Person:
    return await sign_up(client, unique("alice"))


@pytest.fixture
async def bob(client: httpx.AsyncClient, unique: Unique) -> Person:
    return await sign_up(client, unique("bob"))


async def test_export_has_everything_of_its_owner_and_nothing_private_of_others(
    client: httpx.AsyncClient, alice: Person, bob: Person
) -> None:
    post, draft, comment, bobs = await create_everything(client, alice, bob)
    login = {"login": alice.username, "password": PASSWORD, "device": "Phone"}
    (await client.post("/v1/auth/login", json=login)).raise_for_status()

    items = await exported(client, alice)

    text = json.dumps(items)
    assert of_kind(items, "account")[0]["email"] == f"{alice.username}@example.com"
    assert {each["device"] for each in of_kind(items, "session")} >= {"Phone"}
    assert [each["username"] for each in of_kind(items, "follow")] == [bob.username]
    assert [each["id"] for each in of_kind(items, "post")] == [post, draft]
    assert [each["body"] for each in of_kind(items, "post")] == ["Text", "Secret"]
    assert [each["id"] for each in of_kind(items, "comment")] == [comment]
    assert [each["postId"] for each in of_kind(items, "like")] == [bobs]
    kinds = {each["kind"] for each in of_kind(items, "notification")}
    assert kinds == {"NOTIFICATION_KIND_LIKE", "NOTIFICATION_KIND_COMMENT"}
    for private in ("Not hers", "Not her words", f"{bob.username}@example.com", "argon2", "Hash"):
        assert private not in text


async def test_export_continues_after_each_cursor(
    client: httpx.AsyncClient, alice: Person, bob: Person
) -> None:
    await create_everything(client, alice, bob)
    items = await exported(client, alice)
    positions = [number for number, item in enumerate(items) if item["cursor"]]

    assert len(positions) == len(items) - 3  # account, session and follow have none
    for number in positions:
        assert await exported(client, alice, items[number]["cursor"]) == items[number + 1 :]


@pytest.mark.parametrize("cursor", ["x", "posts", "posts/", "accounts/1", "/1", "\u00e9/1"])
async def test_invalid_cursor_is_refused(
    cursor: str, client: httpx.AsyncClient, alice: Person
) -> None:
    response = await client.get(PATH, params={"after": cursor}, headers=alice.headers)

    assert (response.status_code, response.json()["reason"]) == (422, "CURSOR_INVALID")


async def test_export_needs_an_open_session(client: httpx.AsyncClient, alice: Person) -> None:
    await Client(client, alice).done("POST", "/v1/auth/logout")

    response = await client.get(PATH, headers=alice.headers)

    assert (response.status_code, response.json()["reason"]) == (401, "SESSION_REVOKED")


def test_export_has_a_rate_and_a_minute() -> None:
    method = METHODS["postbus.posts.v1.ExportService.ExportMe"]

    assert (method.rate_limit, method.timeout) == ("20/hour", 60)


@asynccontextmanager
async def content_of(
    person: Person, system: System, kind: str, count: int, characters: int
) -> AsyncIterator[None]:
    """Store comments or drafts of a user."""
    url = system.databases("posts")["POSTBUS_MONGO_URL"]
    document = COMMON[kind] | {"author_id": person.id, "body": "x" * characters}
    async with AsyncMongoClient[dict[str, Any]](url) as mongo:
        stored = mongo.get_default_database()[f"{kind}s"]
        for start in range(0, count, 1000):
            names = [f"{person.id}-{number}" for number in range(start, min(start + 1000, count))]
            own = [{"_id": name, "place": name, "slugs": [name]} for name in names]
            await stored.insert_many(document | each for each in own)
        yield
        await stored.delete_many({"author_id": person.id})


async def export_and_measure(
    client: httpx.AsyncClient, system: System, person: Person, kind: str
) -> tuple[int, Counter[str]]:
    """Return the number of exported items of a kind, and the growth of each process in MiB."""
    await exported(client, person, "likes/x")  # loads what is loaded once
    before, growth, count = system.resident(), Counter[str](), 0
    async with client.stream("GET", PATH, headers=person.headers) as response:
        async for line in response.aiter_lines():
            count += kind in json.loads(line)["result"]
            if count % 500 == 0:
                for name, resident in system.resident().items():
                    growth[name] = max(growth[name], int(resident - before[name]))
    return count, growth


@pytest.mark.parametrize(
    ("kind", "count", "characters"),
    [
        ("comment", 4_000, 10_000),
        ("post", 400, 100_000),
        pytest.param("comment", 50_000, 1_000, marks=pytest.mark.long),
    ],
)
async def test_large_export_is_complete_with_bounded_memory(
    kind: str,
    count: int,
    characters: int,
    client: httpx.AsyncClient,
    system: System,
    alice: Person,
) -> None:
    async with content_of(alice, system, kind, count, characters):
        found, growth = await export_and_measure(client, system, alice, kind)

    assert found == count
    assert max(growth.values()) <= MAX_GROWTH_MIB, growth


async def calls_in_flight(client: httpx.AsyncClient) -> float:
    """Return the number of exports that run in the workers."""
    text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if "_in_flight{" in line and "Export" in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def processor_seconds(system: System) -> float:
    """Return the processor time of all services."""
    files = [Path(f"/proc/{pid}/schedstat") for pid in system.pids()]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def is_running(pid: int) -> bool:
    """Return whether a process runs, or waits for a processor."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "R"


async def until_idle(system: System) -> None:
    """Wait until the services have nothing to do, not only no processor."""
    idle = 0
    async with asyncio.timeout(60):
        while idle < 10:
            before = processor_seconds(system)
            await asyncio.sleep(0.05)
            used = processor_seconds(system) - before
            idle = 0 if used > 0.01 or any(map(is_running, system.pids())) else idle + 1


async def test_slow_reader_stops_the_export_and_its_disconnect_ends_it(
    client: httpx.AsyncClient, system: System, alice: Person
) -> None:
    async with content_of(alice, system, "comment", 4_000, 10_000):
        before = system.resident()
        reader, writer = await asyncio.open_connection("127.0.0.1", system.port, limit=1024)
        head = f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice.token}\r\n\r\n"
        writer.write(head.encode())
        await reader.readexactly(100)
        await until_idle(system)

        assert await calls_in_flight(client) == 1  # that of `posts`; `users` has finished
        growth = {name: after - before[name] for name, after in system.resident().items()}
        assert max(growth.values()) <= MAX_GROWTH_MIB, growth
        writer.transport.abort()
        await eventually(lambda: _is(calls_in_flight(client), 0), seconds=5)


async def _is(value: Any, expected: float) -> bool:
    return bool(await value == expected)


async def test_deleted_account_has_no_export(client: httpx.AsyncClient, alice: Person) -> None:
    await Client(client, alice).done("DELETE", "/v1/me")

    response = await client.get(PATH, headers=alice.headers)

    assert (response.status_code, response.json()["reason"]) == (401, "SESSION_REVOKED")
