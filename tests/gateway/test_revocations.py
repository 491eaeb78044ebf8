"""Sessions that end before their access tokens expire."""

import asyncio
from datetime import UTC, datetime
from functools import partial
from threading import Event as ThreadEvent

import httpx
import pytest

from gateway.gateway import Gateway
from gateway.large_inputs import LARGE_BYTES
from gateway.services import Services
from gateway.socket_limits import FrameBudget
from gateway.websocket_connection import WebSocketConnection
from postbus.bus.v1 import Event
from postbus.users.v1 import SessionsRevoked
from shared.access_tokens import ACCESS_TOKEN_SECONDS, Caller, TokenVerifier
from shared.bus.amqp.topology import event_stream
from shared.bus.memory import MemoryBus
from shared.bus.message_bus import KEPT_SECONDS
from shared.errors import ServiceError
from shared.runtime.session_verifier import REMEMBERED_SECONDS, SessionVerifier
from shared.wire import encode
from tests.gateway.listening import open_socket
from tests.sockets import MemorySocket
from tests.tokens import TokenMaker

TYPE = "postbus.users.v1.SessionsRevoked"


def revoked(*session_ids: str) -> Event:
    message = SessionsRevoked(user_id="alice", session_ids=list(session_ids))
    time = datetime(2026, 1, 2, tzinfo=UTC)
    return Event(id="e", type=TYPE, subject="alice", time=time, data=encode(message))


def session(session_id: str) -> Caller:
    return Caller(
        user_id="alice", session_id=session_id, expires_at=datetime(2100, 1, 1, tzinfo=UTC)
    )


async def end(bus: MemoryBus, verifier: SessionVerifier, *session_ids: str) -> None:
    """Revoke sessions, and wait until the last one is refused."""
    await bus.publish(revoked(*session_ids))
    with pytest.raises(ServiceError, match="SESSION_REVOKED"):
        await verifier.until_revoked(session(session_ids[-1]))


async def test_revoked_session_closes_its_sockets_and_is_refused_from_then_on(
    app: Gateway, gateway: httpx.AsyncClient, bus: MemoryBus, tokens: TokenMaker
) -> None:
    gone, open_ = tokens.token("alice", sid="gone"), tokens.token("alice", sid="open")
    async with open_socket(app) as first, open_socket(app) as second, open_socket(app) as other:
        for socket, token in ((first, gone), (second, gone), (other, open_)):
            await socket.request({"id": "1", "authenticate": {"accessToken": token}})

        await bus.publish(revoked("unknown", "gone"))

        assert await first.closed() == (4401, "SESSION_REVOKED")
        assert await second.closed() == (4401, "SESSION_REVOKED")
        assert "subscribed" in await other.request(
            {"id": "2", "subscribe": {"types": ["postbus.posts.v1.PostCreated"]}}
        )
    refused = await gateway.get("/v1/posts", headers={"Authorization": f"Bearer {gone}"})
    served = await gateway.get("/v1/posts", headers={"Authorization": f"Bearer {open_}"})
    assert (refused.status_code, refused.json()["reason"]) == (401, "SESSION_REVOKED")
    assert served.status_code == 200


async def test_revoked_session_opens_no_socket(
    app: Gateway, bus: MemoryBus, tokens: TokenMaker
) -> None:
    token = tokens.token("alice", sid="gone")
    frame = {"id": "1", "authenticate": {"accessToken": token}}
    async with open_socket(app) as socket:
        await socket.request(frame)
        await bus.publish(revoked("gone"))
        await socket.closed()

    async with open_socket(app) as socket:
        received = await socket.request(frame)

    assert received["error"]["code"] == "CODE_UNAUTHENTICATED"
    assert received["error"]["reason"] == "SESSION_REVOKED"


async def test_revoked_session_may_repeat_the_call_that_ended_it(
    app: Gateway, gateway: httpx.AsyncClient, bus: MemoryBus, tokens: TokenMaker
) -> None:
    token = tokens.token("alice", sid="gone")
    async with open_socket(app) as socket:
        await socket.request({"id": "1", "authenticate": {"accessToken": token}})
        await bus.publish(revoked("gone"))
        await socket.closed()
    headers = {"Authorization": f"Bearer {token}"}

    again = await gateway.post("/v1/auth/logout", headers=headers)
    other = await gateway.get("/v1/auth/sessions", headers=headers)

    assert again.status_code == 204
    assert (other.status_code, other.json()["reason"]) == (401, "SESSION_REVOKED")


async def test_closed_connection_waits_for_nothing(
    bus: MemoryBus, verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    services, socket = Services.create(bus, verifier, max_body_bytes=2**20), MemorySocket()
    await services.subscribe()
    connection = WebSocketConnection(socket, services, FrameBudget(1000, 1000))
    before = asyncio.all_tasks()
    token = tokens.token("alice").encode()
    connection.receive(b'{"id": "1", "authenticate": {"accessToken": "%b"}}' % token)
    go = ThreadEvent()
    reading = asyncio.create_task(services.large_inputs.read("other", 20, partial(go.wait, 20)))
    await asyncio.sleep(0)
    waiting = connection.receive(b'{"id": "2"}' + b" " * LARGE_BYTES)

    await connection.close()

    assert waiting is not None
    assert waiting.cancelled()
    assert asyncio.all_tasks() == before | {reading}
    assert connection._timer.cancelled()
    go.set()
    await reading


async def test_call_of_a_revoked_session_is_refused_before_its_socket_is_closed(
    bus: MemoryBus, verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    services, socket = Services.create(bus, verifier, max_body_bytes=10_000), MemorySocket()
    await services.subscribe()
    connection = WebSocketConnection(socket, services, FrameBudget(1000, 1000))
    token = tokens.token("alice", sid="gone")
    connection.receive(b'{"id": "1", "authenticate": {"accessToken": "%b"}}' % token.encode())
    await socket.frame()
    await end(bus, services.verifier, "gone")

    connection.receive(
        b'{"id": "2", "call": {"method": "postbus.posts.v1.PostsService.ListPosts"}}'
    )

    assert (await socket.frame())["error"]["reason"] == "SESSION_REVOKED"
    await connection.close()


async def test_revoked_session_is_refused_as_long_as_a_token_can_be_valid(
    bus: MemoryBus, verifier: TokenVerifier
) -> None:
    now = [1000.0]
    sessions = SessionVerifier(bus, verifier, clock=lambda: now[0])
    await sessions.run()
    await end(bus, sessions, "a")
    now[0] = 1100.0
    await end(bus, sessions, "b")

    now[0] = 1689.9
    for name in ("a", "b"):
        with pytest.raises(ServiceError, match="SESSION_REVOKED"):
            sessions.require_open(session(name))
    now[0] = 1690.0
    sessions.require_open(session("a"))
    with pytest.raises(ServiceError, match="SESSION_REVOKED"):
        sessions.require_open(session("b"))
    now[0] = 1800.0
    await end(bus, sessions, "c")
    assert list(sessions._revoked) == ["c"]


async def test_sessions_are_refused_until_the_revocations_are_loaded(
    bus: MemoryBus, verifier: TokenVerifier
) -> None:
    sessions = SessionVerifier(bus, verifier)

    with pytest.raises(ServiceError, match="SESSIONS_UNKNOWN"):
        sessions.require_open(session("a"))


async def test_100000_revoked_sessions_are_kept_and_the_oldest_dropped_first(
    bus: MemoryBus, verifier: TokenVerifier
) -> None:
    sessions = SessionVerifier(bus, verifier)
    await sessions.run()
    await end(bus, sessions, "oldest", "older", "old")

    names = ["older", *(f"s{number}" for number in range(99_999))]
    for start in range(0, len(names), 25_000):
        await end(bus, sessions, *names[start : start + 25_000])

    for name in ("oldest", "old"):
        sessions.require_open(session(name))
    for name in ("older", "s0", "s99998"):
        with pytest.raises(ServiceError, match="SESSION_REVOKED"):
            sessions.require_open(session(name))


async def test_malformed_revocation_does_not_stop_later_ones(
    bus: MemoryBus, verifier: TokenVerifier
) -> None:
    sessions = SessionVerifier(bus, verifier)
    await sessions.run()

    await bus.publish(Event(id="e", type=TYPE, data=b"\xff"))

    await end(bus, sessions, "gone")


async def test_revocation_with_an_oversized_session_id_is_ignored(
    bus: MemoryBus, verifier: TokenVerifier
) -> None:
    sessions = SessionVerifier(bus, verifier)
    await sessions.run()

    await end(bus, sessions, "x" * 65, "y" * 64)

    sessions.require_open(session("x" * 65))


async def test_sessions_revoked_before_the_start_are_refused(
    bus: MemoryBus, verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    await bus.publish(revoked("gone"))
    sessions = SessionVerifier(bus, verifier)

    await sessions.run()

    assert sessions.ready
    with pytest.raises(ServiceError, match="SESSION_REVOKED"):
        sessions.verify(tokens.token("alice", sid="gone"))
    assert sessions.verify(tokens.token("alice", sid="gone"), ended=True).user_id == "alice"
    assert sessions.verify(tokens.token("alice", sid="open")).user_id == "alice"


def test_revocations_are_kept_longer_than_a_token_can_be_valid() -> None:
    assert ACCESS_TOKEN_SECONDS + 90 <= REMEMBERED_SECONDS <= KEPT_SECONDS
    assert event_stream("gateway", "name").arguments["x-max-age"] == f"{KEPT_SECONDS}s"
