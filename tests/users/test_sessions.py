"""Sessions: log-in, refresh, revocation and keys."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest
from pydantic import SecretStr

from shared.access_tokens import TokenVerifier
from tests.people import PASSWORD, Client, Person, sign_up
from tests.tokens import TokenMaker
from users.token_signer import TokenSigner

Unique = Callable[[str], str]


async def log_in(client: httpx.AsyncClient, login: str, **fields: str) -> dict[str, Any]:
    body = {"login": login, "password": PASSWORD, **fields}
    return dict((await client.post("/v1/auth/login", json=body)).raise_for_status().json())


async def refresh(client: httpx.AsyncClient, token: str) -> httpx.Response:
    return await client.post("/v1/auth/refresh", json={"refreshToken": token})


def bearer(client: httpx.AsyncClient, session: dict[str, Any]) -> Client:
    return Client(client, Person(id="", username="", token=session["accessToken"]))


@pytest.fixture
async def alice(client: httpx.AsyncClient, unique: Unique) -> Person:
    return await sign_up(client, unique("Alice"))


async def test_log_in_takes_username_or_email_in_any_case(
    client: httpx.AsyncClient, alice: Person
) -> None:
    for login in (alice.username.upper(), f"{alice.username}@EXAMPLE.com"):
        session = await log_in(client, login)
        assert (await bearer(client, session).done("GET", "/v1/me"))["id"] == alice.id


async def test_refresh_gives_new_tokens_of_the_same_session(
    client: httpx.AsyncClient, alice: Person
) -> None:
    first = await log_in(client, alice.username)

    second = (await refresh(client, first["refreshToken"])).json()
    third = (await refresh(client, second["refreshToken"])).json()

    assert first["sessionId"] == second["sessionId"] == third["sessionId"]
    assert len({each["refreshToken"] for each in (first, second, third)}) == 3
    assert (await bearer(client, third).done("GET", "/v1/me"))["id"] == alice.id


async def test_reused_refresh_token_ends_its_session(
    client: httpx.AsyncClient, alice: Person
) -> None:
    first, other = await log_in(client, alice.username), await log_in(client, alice.username)
    second = (await refresh(client, first["refreshToken"])).json()

    stolen = await refresh(client, first["refreshToken"])

    assert (stolen.status_code, stolen.json()["reason"]) == (401, "REFRESH_TOKEN_REUSED")
    newer = await refresh(client, second["refreshToken"])
    assert (newer.status_code, newer.json()["reason"]) == (401, "REFRESH_TOKEN_INVALID")
    assert await bearer(client, second).refused("GET", "/v1/me") == (401, "SESSION_REVOKED")
    assert (await refresh(client, other["refreshToken"])).status_code == 200


async def test_concurrent_refreshes_give_one_new_token(
    client: httpx.AsyncClient, alice: Person
) -> None:
    session = await log_in(client, alice.username)

    responses = await asyncio.gather(*(refresh(client, session["refreshToken"]) for _ in range(20)))

    kinds = [(response.status_code, response.json().get("reason", "")) for response in responses]
    assert kinds.count((200, "")) == 1
    assert set(kinds) <= {
        (200, ""),
        (409, "REFRESHED_MEANWHILE"),
        (401, "REFRESH_TOKEN_REUSED"),
        (401, "REFRESH_TOKEN_INVALID"),
    }


async def test_forged_refresh_tokens_are_refused_and_end_no_session(
    client: httpx.AsyncClient, alice: Person
) -> None:
    session = await log_in(client, alice.username)
    real = base64.urlsafe_b64decode(session["refreshToken"])
    made_up = [
        "x",
        "é",
        "A" * 200,
        base64.urlsafe_b64encode(real[:16] + bytes(48)).decode(),
        base64.urlsafe_b64encode(bytes(64)).decode(),
    ]

    for token in made_up:
        response = await refresh(client, token)
        assert (response.status_code, response.json()["reason"]) == (401, "REFRESH_TOKEN_INVALID")
    assert (await refresh(client, session["refreshToken"])).status_code == 200


async def test_log_out_ends_the_session_permanently(
    client: httpx.AsyncClient, alice: Person
) -> None:
    session, other = await log_in(client, alice.username), await log_in(client, alice.username)

    await bearer(client, session).done("POST", "/v1/auth/logout")

    assert await bearer(client, session).refused("GET", "/v1/me") == (401, "SESSION_REVOKED")
    assert (await refresh(client, session["refreshToken"])).status_code == 401
    await bearer(client, other).done("GET", "/v1/me")


async def test_log_out_everywhere_ends_every_session(
    client: httpx.AsyncClient, alice: Person
) -> None:
    sessions = [await log_in(client, alice.username) for _ in range(3)]

    await bearer(client, sessions[0]).done("POST", "/v1/auth/logout-everywhere")

    for session in sessions:
        assert await bearer(client, session).refused("GET", "/v1/me") == (401, "SESSION_REVOKED")


async def test_sessions_are_listed_and_revoked_by_their_user(
    client: httpx.AsyncClient, alice: Person, unique: Unique
) -> None:
    phone = await log_in(client, alice.username, device="Phone 📱")
    here = await log_in(client, alice.username, device="Here")
    stranger = Client(client, await sign_up(client, unique("mallory")))
    me = bearer(client, here)

    listed = await me.all("/v1/auth/sessions", "sessions", size=1)
    page = await me.done("GET", "/v1/auth/sessions?includeTotal=true")
    path = f"/v1/auth/sessions/{phone['sessionId']}"

    assert [(each["device"], each["current"]) for each in listed] == [
        ("Here", True),
        ("Phone 📱", False),
        ("", False),
    ]
    assert page["total"] == 3
    assert await stranger.refused("DELETE", path) == (404, "SESSION_NOT_FOUND")
    await bearer(client, phone).done("GET", "/v1/me")
    await me.done("DELETE", path)
    assert await bearer(client, phone).refused("GET", "/v1/me") == (401, "SESSION_REVOKED")
    assert await me.refused("DELETE", path) == (404, "SESSION_NOT_FOUND")


async def test_new_password_ends_the_other_sessions(
    client: httpx.AsyncClient, alice: Person
) -> None:
    here, there = await log_in(client, alice.username), await log_in(client, alice.username)
    me, new = bearer(client, here), "another long password"
    wrong = {"currentPassword": "not this one", "newPassword": new}
    right = {"currentPassword": PASSWORD, "newPassword": new}

    assert await me.refused("POST", "/v1/auth/password", wrong) == (403, "WRONG_PASSWORD")
    await me.done("POST", "/v1/auth/password", right)

    await me.done("GET", "/v1/me")
    assert await bearer(client, there).refused("GET", "/v1/me") == (401, "SESSION_REVOKED")
    login = {"login": alice.username, "password": PASSWORD}
    assert (await client.post("/v1/auth/login", json=login)).status_code == 401
    response = await client.post("/v1/auth/login", json=login | {"password": new})
    assert response.status_code == 200


async def test_password_matches_in_another_unicode_form(
    client: httpx.AsyncClient, unique: Unique
) -> None:
    name = unique("unicode")
    account = {"username": name, "email": f"{name}@example.com"}
    composed, apart = "caf\u00e9 \u1e9b\u0323 12", "cafe\u0301 \u1e9b\u0323 12"

    created = await client.post("/v1/auth/signup", json=account | {"password": composed})
    session = await client.post("/v1/auth/login", json={"login": name, "password": apart})

    assert (created.status_code, session.status_code) == (201, 200)


@pytest.mark.parametrize("known", [True, False])
async def test_consecutive_failures_throttle_an_account(
    known: bool, client: httpx.AsyncClient, alice: Person, unique: Unique
) -> None:
    login = alice.username if known else unique("nobody")

    async def attempt(name: str, password: str) -> httpx.Response:
        return await client.post("/v1/auth/login", json={"login": name, "password": password})

    failures = [await attempt(login, "wrong password") for _ in range(5)]
    waiting = await attempt(login, PASSWORD)
    other = await sign_up(client, unique("other"))

    assert {each.json()["reason"] for each in failures} == {"WRONG_CREDENTIALS"}
    assert (waiting.status_code, waiting.json()["reason"]) == (429, "LOGIN_THROTTLED")
    assert waiting.headers["Retry-After"] == "1"
    assert (await attempt(other.username, PASSWORD)).status_code == 200
    by_email = await attempt(f"{alice.username}@example.com", PASSWORD)
    # username and email address of an account count together, but not another name
    assert by_email.status_code == (429 if known else 200)


async def test_concurrent_attempts_are_throttled_like_consecutive_ones(
    client: httpx.AsyncClient, alice: Person
) -> None:
    body = {"login": alice.username, "password": "wrong password"}
    responses = await asyncio.gather(*(client.post("/v1/auth/login", json=body) for _ in range(20)))

    reasons = [response.json()["reason"] for response in responses]
    assert reasons.count("WRONG_CREDENTIALS") == 5
    assert set(reasons) == {"WRONG_CREDENTIALS", "LOGIN_THROTTLED"}


async def test_many_concurrent_log_ins_do_not_block_other_calls(
    client: httpx.AsyncClient, unique: Unique
) -> None:
    people = [await sign_up(client, unique("crowd")) for _ in range(10)]
    slowest = 0.0

    async def attempt(number: int) -> httpx.Response:
        body = {"login": people[number % 10].username, "password": PASSWORD}
        return await client.post("/v1/auth/login", json=body)

    async with httpx.AsyncClient(base_url=client.base_url, timeout=10) as other:
        crowd = asyncio.gather(*(attempt(number) for number in range(200)))
        while not crowd.done():
            began = time.monotonic()
            response = await other.get(f"/v1/users/{people[0].username}")
            slowest = max(slowest, time.monotonic() - began)
            assert response.status_code == 200
        responses = await crowd

    kinds = {(each.status_code, each.json().get("reason", "")) for each in responses}
    assert kinds <= {(200, ""), (429, "PASSWORDS_BUSY"), (429, "LOGIN_THROTTLED")}
    assert all("Retry-After" in each.headers for each in responses if each.status_code == 429)
    assert sum(each.status_code == 200 for each in responses) >= 5  # on a busy machine
    assert slowest < 2


async def test_published_keys_verify_access_tokens(
    client: httpx.AsyncClient, alice: Person
) -> None:
    keys = (await client.get("/.well-known/jwks.json")).json()

    key = jwt.PyJWKSet.from_dict(keys)[jwt.get_unverified_header(alice.token)["kid"]]
    claims = jwt.decode(
        alice.token, key, algorithms=["EdDSA"], audience="postbus", issuer="postbus.users"
    )
    assert claims["sub"] == alice.id
    assert claims["exp"] - claims["iat"] <= 600


def test_tokens_of_the_previous_and_the_next_key_are_valid() -> None:
    old, new = TokenMaker("old"), TokenMaker("new")
    keys = [json.loads(maker.key_set)["keys"][0] for maker in (old, new)]
    both, only_new = (TokenVerifier(json.dumps({"keys": part})) for part in (keys, keys[1:]))

    token, _ = TokenSigner(SecretStr(new.signing_key)).sign("a-user", "a-session")

    assert both.verify(old.token("a-user")).user_id == "a-user"
    assert both.verify(token).session_id == "a-session"
    with pytest.raises(Exception, match="TOKEN_INVALID"):
        only_new.verify(old.token("a-user"))
