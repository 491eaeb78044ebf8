"""Follows: idempotence, lists, concurrency, erasure and repair."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import asyncpg
import httpx
import pytest

from tests.people import Client, Person, eventually, sign_up
from tests.system import System

Unique = Callable[[str], str]


@pytest.fixture
async def people(client: httpx.AsyncClient, unique: Unique) -> list[Person]:
    return [await sign_up(client, unique(name)) for name in ("ann", "bea", "cyd", "dot", "eve")]


@pytest.fixture
async def database(system: System) -> AsyncIterator[asyncpg.Connection]:
    """Connect to the database of `users`."""
    connection = await asyncpg.connect(system.databases("users")["POSTBUS_POSTGRES_URL"])
    yield connection
    await connection.close()


def follow(person: Person) -> str:
    return f"/v1/users/{person.username}/follow"


async def counts(client: httpx.AsyncClient, person: Person) -> tuple[int, int]:
    profile = await Client(client).done("GET", f"/v1/users/{person.username}")
    return profile["followerCount"], profile["followingCount"]


async def test_second_follow_or_unfollow_changes_nothing(
    client: httpx.AsyncClient, people: list[Person]
) -> None:
    ann, bea = people[:2]
    as_ann = Client(client, ann)

    for _ in range(2):
        profile = await as_ann.done("PUT", follow(bea))
        assert (profile["followed"], profile["followerCount"]) == (True, 1)
    assert not (await Client(client).done("GET", f"/v1/users/{bea.username}"))["followed"]
    assert await counts(client, ann) == (0, 1)
    for _ in range(2):
        profile = await as_ann.done("DELETE", follow(bea))
        assert (profile["followed"], profile["followerCount"]) == (False, 0)


async def test_every_route_of_a_user_takes_an_id(
    client: httpx.AsyncClient, people: list[Person]
) -> None:
    ann, bea = people[:2]
    as_ann, path = Client(client, ann), f"/v1/users/{bea.id.upper()}"

    followed = await as_ann.done("PUT", f"{path}/follow")
    read = await as_ann.done("GET", path)

    assert read == followed == await as_ann.done("GET", f"/v1/users/{bea.username}")
    assert (read["id"], read["followed"]) == (bea.id, True)
    followers = await as_ann.done("GET", f"{path}/followers")
    following = await as_ann.done("GET", f"/v1/users/{ann.id}/following")
    assert [each["id"] for each in followers["profiles"]] == [ann.id]
    assert [each["id"] for each in following["profiles"]] == [bea.id]
    assert not (await as_ann.done("DELETE", f"{path}/follow"))["followed"]
    for unknown in ("018f3f6e-0000-7000-8000-000000000000", "0", "1-name"):
        refusal = await as_ann.refused("GET", f"/v1/users/{unknown}")
        assert refusal == (404, "USER_NOT_FOUND")


async def test_user_cannot_follow_themselves_or_an_unknown_user(
    client: httpx.AsyncClient, people: list[Person]
) -> None:
    as_ann = Client(client, people[0])

    own = await as_ann.send("PUT", follow(people[0]))
    assert (own.status_code, own.json()["reason"]) == (422, "FOLLOWS_SELF")
    assert [each["field"] for each in own.json()["violations"]] == ["username"]
    for verb in ("PUT", "DELETE"):
        path = "/v1/users/nobody-at-all/follow"
        assert await as_ann.refused(verb, path) == (404, "USER_NOT_FOUND")


async def test_followers_and_followed_are_listed_latest_first(
    client: httpx.AsyncClient, people: list[Person]
) -> None:
    ann, others = people[0], people[1:]
    for other in others:
        await Client(client, other).done("PUT", follow(ann))
        await Client(client, ann).done("PUT", follow(other))
    names = [person.username for person in reversed(others)]

    for kind in ("followers", "following"):
        path = f"/v1/users/{ann.username}/{kind}"
        listed = await Client(client, ann).all(path, "profiles", size=3)
        assert [each["username"] for each in listed] == names
        assert all(each["followed"] for each in listed)
        page = await Client(client).done("GET", f"{path}?pageSize=1&includeTotal=true")
        assert (page["total"], page["profiles"][0]["followed"]) == (4, False)
        token = page["nextPageToken"]
        foreign = f"/v1/users/{others[0].username}/{kind}?pageToken={token}"
        assert await Client(client).refused("GET", foreign) == (422, "PAGE_TOKEN_INVALID")


async def test_counters_are_exact_after_concurrent_follows_and_unfollows(
    client: httpx.AsyncClient, people: list[Person]
) -> None:
    dice = random.Random(7)  # noqa: S311  # no secret
    pairs = [(one, other) for one in people for other in people if one is not other] * 4
    dice.shuffle(pairs)
    wanted = {(one.id, other.id): dice.random() < 0.7 for one, other in pairs}

    async def do(one: Person, other: Person) -> None:
        verb = "PUT" if wanted[one.id, other.id] else "DELETE"
        person = Client(client, one)
        # More calls than connections: a slow machine may refuse some, without effect.
        while (response := await person.send(verb, follow(other), request_timeout="25")).is_error:
            assert response.json()["reason"] == "DATABASE_BUSY", response.text

    client.timeout = httpx.Timeout(30)
    await asyncio.gather(*(do(one, other) for one, other in pairs))

    for person in people:
        followers = sum(yes for (_, other), yes in wanted.items() if other == person.id)
        following = sum(yes for (one, _), yes in wanted.items() if one == person.id)
        assert await counts(client, person) == (followers, following)


async def test_deleted_user_is_removed_from_lists_and_counters(
    client: httpx.AsyncClient, people: list[Person]
) -> None:
    ann, bea, cyd = people[:3]
    await Client(client, ann).done("PUT", follow(bea))
    await Client(client, bea).done("PUT", follow(ann))
    await Client(client, bea).done("PUT", follow(cyd))

    await Client(client, bea).done("DELETE", "/v1/me")

    refused = await Client(client, bea).refused("GET", "/v1/me")
    assert refused == (401, "SESSION_REVOKED")
    assert await Client(client).refused("GET", f"/v1/users/{bea.username}") == (
        404,
        "USER_NOT_FOUND",
    )
    for kind in ("followers", "following"):
        page = await Client(client).done("GET", f"/v1/users/{ann.username}/{kind}")
        assert page["profiles"] == []

    async def counted() -> bool:
        return [await counts(client, each) for each in (ann, cyd)] == [(0, 0), (0, 0)]

    await eventually(counted)
    again = await sign_up(client, bea.username)
    assert again.id != bea.id


async def test_follows_of_a_deleted_user_are_erased_in_batches(
    client: httpx.AsyncClient, people: list[Person], database: asyncpg.Connection
) -> None:
    ann, bea = people[:2]
    await Client(client, ann).done("PUT", follow(bea))
    await database.execute(
        "INSERT INTO follows SELECT 'fan-' || n, $1, now() FROM generate_series(1, 1200) n",
        ann.id,
    )

    await Client(client, ann).done("DELETE", "/v1/me")

    async def gone() -> bool:
        query = "SELECT count(*) FROM follows WHERE followed_id = $1 OR follower_id = $1"
        return not await database.fetchval(query, ann.id)

    await eventually(gone)
    assert await counts(client, bea) == (0, 0)


async def test_repair_corrects_derived_data_and_reports_each_correction(
    client: httpx.AsyncClient,
    people: list[Person],
    system: System,
    database: asyncpg.Connection,
) -> None:
    ann, bea = people[:2]
    await Client(client, ann).done("PUT", follow(bea))
    await database.execute("UPDATE users SET follower_count = 9 WHERE id = $1", bea.id)
    await database.execute("INSERT INTO follows VALUES ('gone', $1, now())", ann.id)

    first = (await system.output("users", "repair")).splitlines()
    again = (await system.output("users", "repair")).splitlines()

    assert first[0] == f"users: {bea.id}: 1 followers instead of 9, 0 followed instead of 0"
    assert first[1].endswith(" accounts, 1 with wrong counters, 1 follows without a user")
    assert len(again) == 1
    assert again[0].endswith(" accounts, 0 with wrong counters, 0 follows without a user")
    assert await counts(client, bea) == (1, 0)


async def test_revision_counts_the_changes_that_posts_projects(
    client: httpx.AsyncClient, people: list[Person], database: asyncpg.Connection
) -> None:
    ann, bea = people[:2]
    as_ann = Client(client, ann)

    async def revision(person: Person) -> int:
        stored: int = await database.fetchval("SELECT revision FROM users WHERE id = $1", person.id)
        return stored

    revisions = []
    for verb, path, body in (
        ("PUT", follow(bea), None),
        ("PUT", follow(bea), None),  # changes nothing
        ("PATCH", "/v1/me", {"displayName": "Ann"}),
        ("PATCH", "/v1/me", {"displayName": "Ann"}),  # changes nothing
        ("PATCH", "/v1/me", {"bio": "Not shown by posts"}),
        ("DELETE", follow(bea), None),
        ("DELETE", follow(bea), None),  # changes nothing
    ):
        await as_ann.done(verb, path, body)
        revisions.append(await revision(ann))

    assert revisions == [1, 1, 2, 2, 2, 3, 3]
    assert await revision(bea) == 0
