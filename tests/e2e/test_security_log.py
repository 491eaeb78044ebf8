"""Each security event is provoked in the running system, logged without secrets, and counted."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import aio_pika
import httpx
import pytest
from pydantic import SecretStr

from postbus.registry import METHODS
from shared.bus import Call
from shared.bus.amqp import AmqpBus, connect
from shared.errors import ServiceError
from shared.security_log import SecurityEvent
from tests.conftest import Place
from tests.people import PASSWORD, Client, Person, eventually, sign_up
from tests.system import System

Unique = Callable[[str], str]
OPERATIONS: Final = Path(__file__).parents[2] / "docs" / "operations.md"
METRICS_SECONDS: Final = 1.1
"""Longer than the gateway keeps /metrics."""
GET_POST: Final = METHODS["postbus.posts.v1.PostsService.GetPost"]
NEW_PASSWORD: Final = f"{PASSWORD} 2"
FORGED: Final = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJmb3JnZWQifQ."


@pytest.fixture
async def bus(place: Place, system: System) -> AsyncIterator[AmqpBus]:
    async with connect(SecretStr(place.amqp_url), "operator") as opened:
        await opened.wait_ready()
        yield opened


def counts(system: System) -> Counter[str]:
    """Return the number of lines of each security event in all logs."""
    return Counter(line["event"] for line in lines(system))


def lines(system: System) -> list[dict[str, Any]]:
    """Return the lines of security events in all logs."""
    texts = [system.log(name).splitlines() for name in ("gateway", "users", "posts")]
    every = [json.loads(line) for text in texts for line in text if line.startswith("{")]
    return [line for line in every if str(line.get("event")).startswith("security.")]


async def counted(client: httpx.AsyncClient) -> Counter[str]:
    """Return the number of each security event in /metrics, over all processes."""
    text = (await client.get("/metrics")).text
    found: Counter[str] = Counter()
    pattern = r'postbus_security_events_total\{event="([^"]+)".*\} ([0-9.e+]+)'
    for event, number in re.findall(pattern, text):
        found[event] += int(float(number))
    return found


async def provoke_at_log_in(client: httpx.AsyncClient, person: Person, tried: str) -> str:
    """Fail to log in until throttled, and reuse a refresh token; return that token."""
    for name in [person.username, *[tried] * 6]:
        login = {"login": name, "password": f"wrong {tried}"}
        await client.post("/v1/auth/login", json=login)
    login = {"login": person.username, "password": PASSWORD}
    opened = (await client.post("/v1/auth/login", json=login)).raise_for_status().json()
    refresh = {"refreshToken": opened["refreshToken"]}
    for status in (200, 401):
        response = await client.post("/v1/auth/refresh", json=refresh)
        assert response.status_code == status, response.text
    return str(opened["refreshToken"])


async def provoke_with_a_token(client: httpx.AsyncClient, person: Person, other: Person) -> None:
    """Forge a token, change another's post, change email and password, and delete the account."""
    await client.get("/v1/me", headers={"Authorization": f"Bearer {FORGED}"})
    post = (await Client(client, other).done("POST", "/v1/posts", {"title": "Hers"}))["id"]
    own = Client(client, person)
    assert (await own.refused("DELETE", f"/v1/posts/{post}"))[0] == 403
    await own.done("PATCH", "/v1/me", {"email": f"new-{person.username}@example.com"})
    change = {"currentPassword": PASSWORD, "newPassword": NEW_PASSWORD}
    await own.done("POST", "/v1/auth/password", change)
    await Client(client, other).done("POST", "/v1/auth/logout")
    await own.done("DELETE", "/v1/me")


async def send_as_another(place: Place) -> None:
    """Send a call of the operator with the reply queue of a service."""
    async with await aio_pika.connect(place.amqp_url) as connection:
        channel = await connection.channel()
        calls = await channel.get_exchange("postbus.calls.posts")
        forged = aio_pika.Message(b"", user_id="operator", reply_to="users.replies.1")
        await calls.publish(forged, GET_POST.name)


async def test_every_event_is_logged_without_secrets_and_counted(
    client: httpx.AsyncClient, system: System, bus: AmqpBus, place: Place, unique: Unique
) -> None:
    alice, bob = [await sign_up(client, unique(name)) for name in ("alice", "bob")]
    await asyncio.sleep(METRICS_SECONDS)
    before, counted_before, tried = counts(system), await counted(client), unique("tried")
    refresh_token = await provoke_at_log_in(client, alice, tried)
    await provoke_with_a_token(client, alice, bob)
    with pytest.raises(ServiceError, match="MALFORMED_MESSAGE"):
        await bus.call(GET_POST.name, Call.new(b"\xff", budget=5))
    await send_as_another(place)

    async def are_logged() -> bool:  # the worker drops the call without a reply
        return (counts(system) - before).keys() == {event.value for event in SecurityEvent}

    await eventually(are_logged)
    new = counts(system) - before

    async def are_counted() -> bool:  # the gateway keeps /metrics for a moment
        return await counted(client) - counted_before == new

    await eventually(are_counted)
    deleted = [each for each in lines(system) if each["event"] == SecurityEvent.ACCOUNT_DELETED][-1]
    assert (deleted["user_id"], deleted["address"]) == (alice.id, "127.0.0.1")
    assert re.fullmatch("[0-9a-f]{32}", deleted["trace_id"])
    text = json.dumps(lines(system))
    secrets = (PASSWORD, tried, FORGED, refresh_token, alice.token, "example.com", alice.username)
    for secret in secrets:
        assert secret not in text


def test_documents_list_every_event() -> None:
    table = re.findall(r"^\| `(security\.[a-z_]+)` \|", OPERATIONS.read_text(), re.MULTILINE)

    assert table == [event.value for event in SecurityEvent]
