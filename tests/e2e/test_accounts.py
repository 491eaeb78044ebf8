"""Accounts at their limits, and internal methods about accounts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from postbus.users.v1 import (
    BatchGetUsersRequest,
    BatchGetUsersResponse,
    ListFollowedIdsRequest,
    ListFollowedIdsResponse,
)
from shared.bus import Call
from shared.bus.amqp import connect
from shared.wire import decode, encode
from tests.conftest import Place
from tests.people import PASSWORD, Client, Person, sign_up
from tests.system import System

Unique = Callable[[str], str]
USERS = "postbus.users.v1.UsersService"


@pytest.fixture
async def alice(client: httpx.AsyncClient, unique: Unique) -> Person:
    return await sign_up(client, unique("alice"))


@pytest.fixture
async def database(system: System) -> AsyncIterator[asyncpg.Connection]:
    """Return the database of `users`."""
    connection = await asyncpg.connect(system.databases("users")["POSTBUS_POSTGRES_URL"])
    yield connection
    await connection.close()


async def log_in(client: httpx.AsyncClient, login: str, **fields: str) -> httpx.Response:
    body = {"login": login, "password": PASSWORD, **fields}
    return await client.post("/v1/auth/login", json=body)


async def refresh(client: httpx.AsyncClient, token: str, **headers: str) -> httpx.Response:
    body = {"refreshToken": token}
    return await client.post("/v1/auth/refresh", json=body, headers=headers)


def kind(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("reason", "")


async def test_many_reused_tokens_do_not_block_other_calls(
    client: httpx.AsyncClient, alice: Person
) -> None:
    """Each call needs a second database connection to end the session."""
    sessions = [(await log_in(client, alice.username)).json() for _ in range(4)]
    for session in sessions:
        assert (await refresh(client, session["refreshToken"])).status_code == 200

    stolen = [session["refreshToken"] for session in sessions] * 10
    responses = await asyncio.gather(*(refresh(client, token) for token in stolen))

    kinds = {kind(response) for response in responses}
    assert (401, "REFRESH_TOKEN_REUSED") in kinds
    assert kinds <= {(401, "REFRESH_TOKEN_REUSED"), (401, "REFRESH_TOKEN_INVALID")}


async def test_refresh_repeated_with_its_key_gets_the_first_answer(
    client: httpx.AsyncClient, alice: Person, unique: Unique
) -> None:
    first = (await log_in(client, alice.username)).json()["refreshToken"]
    key = {"Idempotency-Key": unique("key-")}

    second = await refresh(client, first, **key)
    again = await refresh(client, first, **key)

    assert (again.status_code, again.json()) == (200, second.json())
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (await refresh(client, second.json()["refreshToken"])).status_code == 200
    assert kind(await refresh(client, first, **key)) == (401, "REFRESH_TOKEN_REUSED")


async def test_session_without_a_refresh_expires(
    client: httpx.AsyncClient, alice: Person, database: asyncpg.Connection
) -> None:
    old = (await log_in(client, alice.username)).json()
    await database.execute(
        "UPDATE sessions SET expires_at = now() - interval '1 s' WHERE id = $1", old["sessionId"]
    )

    page = await Client(client, alice).done("GET", "/v1/auth/sessions?includeTotal=true")

    assert kind(await refresh(client, old["refreshToken"])) == (401, "REFRESH_TOKEN_INVALID")
    assert old["sessionId"] not in [each["id"] for each in page["sessions"]]
    assert page["total"] == 1


async def test_log_in_beyond_a_hundred_sessions_deletes_the_oldest(
    client: httpx.AsyncClient, alice: Person, database: asyncpg.Connection
) -> None:
    await database.execute(
        "INSERT INTO sessions SELECT left(id, 30) || lpad(n::text, 6, '0'), user_id, n::text,"
        " family_hash, secret_hash, created_at, refreshed_at, expires_at"
        " FROM sessions, generate_series(1, 99) n WHERE user_id = $1",
        alice.id,
    )

    new = (await log_in(client, alice.username)).json()

    kept = await database.fetch(
        "SELECT id FROM sessions WHERE user_id = $1 ORDER BY id DESC", alice.id
    )
    assert len(kept) == 100
    assert kept[0]["id"] == new["sessionId"]


@pytest.mark.parametrize("device", ["x" * 101, "a\nb", "a\u0000", "\u202eevil", "a\u2069"])
async def test_device_name_with_control_characters_is_refused(
    device: str, client: httpx.AsyncClient, alice: Person
) -> None:
    response = await log_in(client, alice.username, device=device)

    assert response.status_code == 422
    assert [each["field"] for each in response.json()["violations"]] == ["device"]


async def test_wrong_current_passwords_are_throttled_apart_from_log_ins(
    client: httpx.AsyncClient, alice: Person
) -> None:
    body = {"currentPassword": "not this one", "newPassword": "another long password"}
    change = "POST", "/v1/auth/password", body

    failures = [await Client(client, alice).refused(*change) for _ in range(5)]

    assert set(failures) == {(403, "WRONG_PASSWORD")}
    assert await Client(client, alice).refused(*change) == (429, "LOGIN_THROTTLED")
    assert kind(await log_in(client, alice.username)) == (
        200,
        "",
    )  # failures of other people cannot lock it


async def test_success_resets_the_count_of_failures(
    client: httpx.AsyncClient, alice: Person
) -> None:
    for _ in range(2):
        for _ in range(4):
            failed = await log_in(client, alice.username, password="wrong")  # noqa: S106
            assert kind(failed) == (401, "WRONG_CREDENTIALS")
        assert (await log_in(client, alice.username)).status_code == 200


async def test_deleted_account_cannot_log_in(client: httpx.AsyncClient, alice: Person) -> None:
    other = (await log_in(client, alice.username)).json()
    elsewhere = Client(client, Person(id="", username="", token=other["accessToken"]))

    await Client(client, alice).done("DELETE", "/v1/me")

    assert await elsewhere.refused("GET", "/v1/me") == (401, "SESSION_REVOKED")
    assert kind(await refresh(client, other["refreshToken"])) == (401, "REFRESH_TOKEN_INVALID")
    assert kind(await log_in(client, alice.username)) == (401, "WRONG_CREDENTIALS")
    assert kind(await log_in(client, f"{alice.username}@example.com"))[0] == 401


async def test_user_follows_at_most_5000(
    client: httpx.AsyncClient, alice: Person, unique: Unique, database: asyncpg.Connection
) -> None:
    bob = await sign_up(client, unique("bob"))
    await database.execute("UPDATE users SET following_count = 5000 WHERE id = $1", alice.id)
    path, me = f"/v1/users/{bob.username}/follow", Client(client, alice)

    assert await me.refused("PUT", path) == (429, "FOLLOWS_TOO_MANY")

    assert (await me.done("GET", f"/v1/users/{bob.username}"))["followed"] is False
    await database.execute("UPDATE users SET following_count = 4999 WHERE id = $1", alice.id)
    assert (await me.done("PUT", path))["followerCount"] == 1
    assert (await me.done("PUT", path))["followerCount"] == 1
    await database.execute("UPDATE users SET following_count = 1 WHERE id = $1", alice.id)


async def test_concurrent_mutual_follows_do_not_deadlock(
    client: httpx.AsyncClient, alice: Person, unique: Unique
) -> None:
    bob = await sign_up(client, unique("bob"))
    pairs = [(alice, bob), (bob, alice)]

    for verb, followed in (("PUT", 1), ("DELETE", 0), ("PUT", 1)):
        calls = [
            Client(client, one).done(verb, f"/v1/users/{other.username}/follow")
            for one, other in pairs * 15
        ]
        await asyncio.gather(*calls)
        for person in (alice, bob):
            profile = await Client(client).done("GET", f"/v1/users/{person.username}")
            assert (profile["followerCount"], profile["followingCount"]) == (followed, followed)


async def test_services_get_existing_profiles_as_the_caller_sees_them(
    client: httpx.AsyncClient, alice: Person, unique: Unique, place: Place
) -> None:
    bob, cyd = await sign_up(client, unique("bob")), await sign_up(client, unique("cyd"))
    for person in (bob, cyd):
        await Client(client, alice).done("PUT", f"/v1/users/{person.username}/follow")
    missing = "018f3f6e-0000-7000-8000-000000000001"

    async def ask(method: str, request: Any) -> bytes:
        call = Call.new(encode(request), budget=5, access_token=alice.token)
        async with connect(SecretStr(place.amqp_url), "posts") as bus:
            await bus.wait_ready()
            return (await bus.call(f"{USERS}.{method}", call)).payload

    wanted = BatchGetUsersRequest(ids=[alice.id, bob.id, missing])
    batch = decode(BatchGetUsersResponse, await ask("BatchGetUsers", wanted))
    followed = decode(
        ListFollowedIdsResponse, await ask("ListFollowedIds", ListFollowedIdsRequest())
    )

    assert {each.username: each.followed for each in batch.profiles} == {
        alice.username: False,
        bob.username: True,
    }
    assert followed.ids == [cyd.id, bob.id]


@pytest.mark.parametrize("word", ["9e12ab", "10e10xyz", "0x1f", "हिन्दी", "สวัสดี"])
async def test_word_with_digits_or_marks_is_found_by_its_prefix(
    word: str, client: httpx.AsyncClient, alice: Person, unique: Unique
) -> None:
    mark = unique("q")
    await Client(client, alice).done("PATCH", "/v1/me", {"displayName": f"{word} {mark}"})

    for length in range(1, len(word) + 1):
        page = await Client(client).done("GET", f"/v1/users?q={word[:length]}+{mark}")
        assert [each["id"] for each in page["profiles"]] == [alice.id], word[:length]
