"""Ended sessions are refused by processes that start later."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_socket

from postbus.registry import METHODS, Access, Method
from shared.bus import Call
from shared.bus.amqp import AmqpBus, connect
from shared.errors import ServiceError
from tests.conftest import Place
from tests.people import PASSWORD, Person, ask, sign_up
from tests.system import System
from tests.tokens import TokenMaker
from tools.accounts.rights import OPERATOR

Unique = Callable[[str], str]
ID = "018f3f6e-0000-7000-8000-000000000001"
FOR_USERS = [method for method in METHODS.values() if method.access is Access.USER]
REFUSED = [method for method in FOR_USERS if not method.ends_session]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A token of an ended session; `request` ended it, if it used that token."""

    how: str
    token: str
    request: tuple[str, str, str] | None = None
    """Verb, path and idempotency key."""


@pytest.fixture
async def bus(place: Place, system: System) -> AsyncIterator[AmqpBus]:
    async with connect(SecretStr(place.amqp_url), OPERATOR) as opened:
        await opened.wait_ready()
        yield opened


async def log_in(client: httpx.AsyncClient, person: Person) -> str:
    account = {"login": person.username, "password": PASSWORD}
    response = await client.post("/v1/auth/login", json=account)
    return str(response.raise_for_status().json()["accessToken"])


async def done(
    client: httpx.AsyncClient, token: str, verb: str, path: str, body: object = None
) -> tuple[str, str, str]:
    key = str(uuid4())
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key}
    (await client.request(verb, path, json=body, headers=headers)).raise_for_status()
    return verb, path, key


async def all_kinds(client: httpx.AsyncClient, unique: Unique) -> list[Ended]:
    """End one session in each possible way."""
    people = [await sign_up(client, unique("ended")) for _ in range(5)]
    left, left_all, revoked, changed, deleted = people
    others = [await log_in(client, person) for person in (revoked, changed)]
    sessions = await client.get("/v1/auth/sessions", headers=revoked.headers)
    other = next(each["id"] for each in sessions.json()["sessions"] if not each["current"])
    await done(client, revoked.token, "DELETE", f"/v1/auth/sessions/{other}")
    password = {"currentPassword": PASSWORD, "newPassword": f"{PASSWORD} 2"}
    await done(client, changed.token, "POST", "/v1/auth/password", password)
    logged_out = await done(client, left.token, "POST", "/v1/auth/logout")
    logged_out_all = await done(client, left_all.token, "POST", "/v1/auth/logout-everywhere")
    gone = await done(client, deleted.token, "DELETE", "/v1/me")
    return [
        Ended(how="logged out", token=left.token, request=logged_out),
        Ended(how="logged out everywhere", token=left_all.token, request=logged_out_all),
        Ended(how="revoked", token=others[0]),
        Ended(how="password changed", token=others[1]),
        Ended(how="account deleted", token=deleted.token, request=gone),
    ]


def path_of(method: Method) -> str:
    path = method.http[0].path.replace("{username}", "someone")
    return path.replace("{id}", ID).replace("{post_id}", ID)


async def refused_over_rest(client: httpx.AsyncClient, method: Method, token: str) -> str:
    rule = method.http[0]
    headers = {"Authorization": f"Bearer {token}"}
    body: dict[str, str] | None = {} if rule.body else None
    response = await client.request(rule.verb, path_of(method), json=body, headers=headers)
    return f"{response.status_code} {response.json()['reason']}"


async def refused_on_the_bus(bus: AmqpBus, method: Method, token: str) -> str:
    with pytest.raises(ServiceError) as raised:
        await bus.call(method.name, Call.new(b"", budget=5, access_token=token))
    return raised.value.reason


async def authenticated(socket: ClientConnection, token: str) -> str:
    frame = await ask(socket, {"id": "1", "authenticate": {"accessToken": token}})
    return str(frame.get("error", {}).get("reason", json.dumps(frame)))


async def test_ended_session_is_refused_by_gateways_and_workers_that_start_afterwards(
    system: System, client: httpx.AsyncClient, bus: AmqpBus, unique: Unique
) -> None:
    ended = await all_kinds(client, unique)

    await asyncio.gather(system.stop("users"), system.stop("posts"))
    await system.start("users", "posts")
    async with (
        system.another_gateway() as url,
        httpx.AsyncClient(base_url=url, timeout=10) as at_new_gateway,
    ):
        for session in ended:
            for method in REFUSED:
                over_rest = await refused_over_rest(at_new_gateway, method, session.token)
                assert over_rest == "401 SESSION_REVOKED", (session.how, method.name)
                on_bus = await refused_on_the_bus(bus, method, session.token)
                assert on_bus == "SESSION_REVOKED", (session.how, method.name)
            async with connect_socket(f"{url.replace('http', 'ws')}/ws") as socket:
                assert await authenticated(socket, session.token) == "SESSION_REVOKED", session.how
            if session.request:
                verb, path, key = session.request
                headers = {"Authorization": f"Bearer {session.token}", "Idempotency-Key": key}
                again = await at_new_gateway.request(verb, path, headers=headers)
                assert (again.status_code, again.headers["Idempotency-Replayed"]) == (204, "true")


async def test_users_refuses_an_unknown_session_without_a_revocation(
    system: System, client: httpx.AsyncClient, tokens: TokenMaker, unique: Unique
) -> None:
    person = await sign_up(client, unique("alice"))
    headers = {"Authorization": f"Bearer {tokens.token(person.id)}"}

    response = await client.get("/v1/me", headers=headers)

    assert (response.status_code, response.json()["reason"]) == (401, "SESSION_REVOKED")
