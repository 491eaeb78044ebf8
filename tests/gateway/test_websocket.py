"""The WebSocket: recipients of events, and the fields of calls."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import betterproto
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.gateway import Gateway
from postbus.bus.v1 import Event, Reply
from postbus.posts.v1 import (
    DeletePostRequest,
    Notification,
    NotificationCreated,
    PostDeleted,
)
from shared.bus.memory import MemoryBus
from shared.wire import decode, encode
from tests.gateway.conftest import Worker
from tests.gateway.listening import Socket, listening, open_socket
from tests.tokens import TokenMaker

PUBLIC = "postbus.posts.v1.PostDeleted"
FOR_ONE = "postbus.posts.v1.NotificationCreated"
INTERNAL = "postbus.users.v1.SessionsRevoked"
POST_ID = "018f3f6e-0000-7000-8000-000000000001"


def event(type_: str, message: betterproto.Message) -> Event:
    time = datetime(2026, 1, 2, tzinfo=UTC)
    return Event(id="e", type=type_, subject="s", time=time, data=encode(message))


def notification(user_id: str, id_: str) -> Event:
    created = NotificationCreated(user_id=user_id, notification=Notification(id=id_))
    return event(FOR_ONE, created)


async def authenticated(socket: Socket, token: str) -> Socket:
    received = await socket.request({"id": "1", "authenticate": {"accessToken": token}})
    assert "authenticated" in received
    return socket


@pytest.fixture
async def alice(app: Gateway, tokens: TokenMaker) -> AsyncIterator[Socket]:
    async with open_socket(app) as socket:
        yield await authenticated(socket, tokens.token("alice"))


@pytest.fixture
async def bob(app: Gateway, tokens: TokenMaker) -> AsyncIterator[Socket]:
    async with open_socket(app) as socket:
        yield await authenticated(socket, tokens.token("bob"))


async def test_subscription_to_an_internal_event_is_refused_as_unknown(alice: Socket) -> None:
    internal = await alice.request({"id": "2", "subscribe": {"types": [PUBLIC, INTERNAL]}})
    unknown = await alice.request(
        {"id": "2", "subscribe": {"types": [PUBLIC, "postbus.no.v1.Such"]}}
    )

    for received in (internal, unknown):
        received["error"].pop("traceId")
    assert internal["error"]["reason"] == "UNKNOWN_EVENT"
    assert internal == unknown


async def test_public_event_reaches_every_subscriber(
    bus: MemoryBus, alice: Socket, bob: Socket
) -> None:
    for socket in (alice, bob):
        await socket.request({"id": "2", "subscribe": {"types": [PUBLIC]}})

    await bus.publish(event(PUBLIC, PostDeleted(post_id=POST_ID)))

    for socket in (alice, bob):
        assert (await socket.frame())["event"]["data"]["postId"] == POST_ID


async def test_event_for_one_user_reaches_no_other(
    bus: MemoryBus, alice: Socket, bob: Socket
) -> None:
    for socket in (alice, bob):
        await socket.request({"id": "2", "subscribe": {"types": [FOR_ONE]}})

    for user_id in ("", "nobody", "bob", "alice"):
        await bus.publish(notification(user_id, f"for {user_id}"))
    await bus.publish(notification("bob", "last"))

    received = [(await socket.frame())["event"]["data"] for socket in (alice, bob, bob)]
    assert [(each["userId"], each["notification"]["id"]) for each in received] == [
        ("alice", "for alice"),
        ("bob", "for bob"),
        ("bob", "last"),
    ]


async def test_event_for_one_user_reaches_all_of_the_users_sockets_until_they_unsubscribe(
    app: Gateway, bus: MemoryBus, tokens: TokenMaker, alice: Socket
) -> None:
    await alice.request({"id": "2", "subscribe": {"types": [FOR_ONE]}})
    async with open_socket(app) as other:
        await authenticated(other, tokens.token("alice"))
        await other.request({"id": "2", "subscribe": {"types": [FOR_ONE]}})
        await bus.publish(notification("alice", "first"))
        assert (await other.frame())["event"]["data"]["notification"]["id"] == "first"
        await other.request({"id": "3", "unsubscribe": {"subscription": "2"}})

        await bus.publish(notification("alice", "second"))

        ids = [(await alice.frame())["event"]["data"]["notification"]["id"] for _ in range(2)]
        assert ids == ["first", "second"]
        received = await other.request({"id": "4", "unsubscribe": {"subscription": "2"}})
        assert received["error"]["reason"] == "UNKNOWN_SUBSCRIPTION"


async def test_expected_version_is_a_field_of_the_request_over_the_socket(
    worker: Worker, alice: Socket
) -> None:
    worker.reply = Reply(payload=b"")
    call = {
        "method": "postbus.posts.v1.PostsService.DeletePost",
        "request": {"id": POST_ID, "expectedVersion": "7"},
    }

    received = await alice.request({"id": "2", "call": call})

    assert "result" in received
    [(_, request)] = worker.requests
    assert decode(DeletePostRequest, request.payload).expected_version == 7


async def test_call_carries_token_operation_id_trace_and_deadline_to_the_worker(
    worker: Worker, alice: Socket
) -> None:
    worker.reply = Reply(payload=b"", replayed=True)
    trace = "0af7651916cd43dd8448eb211c80319c"
    call = {
        "method": "postbus.posts.v1.PostsService.DeletePost",
        "request": {"id": POST_ID},
        "operationId": "mine",
        "traceparent": f"00-{trace}-b7ad6b7169203331-01",
        "timeoutMs": 2500,
    }

    received = await alice.request({"id": "2", "call": call})

    assert received["result"]["replayed"] is True
    [(_, request)] = worker.requests
    assert request.operation_id == "mine"
    assert request.access_token.count(".") == 2
    assert request.client_address == "127.0.0.1"
    assert 2.3 < request.budget_ms / 1000 <= 2.5
    assert request.traceparent.split("-")[1] == trace


async def test_call_without_an_operation_id_gets_a_new_one(worker: Worker, alice: Socket) -> None:
    call = {"method": "postbus.posts.v1.PostsService.DeletePost", "request": {"id": POST_ID}}

    for id_ in ("2", "3"):
        received = await alice.request({"id": id_, "call": call})
        assert received["result"]["replayed"] is False

    first, second = (request.operation_id for _, request in worker.requests)
    assert first
    assert second
    assert first != second


@pytest.mark.parametrize("path", ["/ws/", "/v1/posts", "/nowhere"])
async def test_handshake_of_another_path_is_a_problem(app: Gateway, path: str) -> None:
    async with listening(app) as port:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{port}{path}")

    assert refused.value.response.status_code == 404
    assert json.loads(refused.value.response.body)["reason"] == "UNKNOWN_PATH"
