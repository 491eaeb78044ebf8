"""The running system over the WebSocket."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import aio_pika
import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from postbus.bus.v1 import Event
from shared.wire import encode
from tests.conftest import Place
from tests.people import ask, sign_up
from tests.system import System
from tests.tokens import TokenMaker

Unique = Callable[[str], str]


@pytest.fixture
async def socket(system: System) -> AsyncIterator[ClientConnection]:
    async with connect(system.websocket_url) as opened:
        yield opened


async def test_call_over_the_socket_equals_the_call_over_rest(
    socket: ClientConnection, client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))

    authenticated = await ask(socket, {"id": "1", "authenticate": {"accessToken": alice.token}})
    assert authenticated["id"] == "1"
    assert authenticated["authenticated"]["userId"] == alice.id

    answer = await ask(
        socket,
        {
            "id": "2",
            "call": {
                "method": "postbus.posts.v1.PostsService.CreatePost",
                "request": {"title": "Over the socket"},
            },
        },
    )
    assert answer["id"] == "2"
    response = answer["result"]["response"]
    assert response["@type"] == "type.googleapis.com/postbus.posts.v1.CreatePostResponse"
    over_rest = await client.get(f"/v1/posts/{response['post']['id']}")
    assert over_rest.json() == response["post"]


async def test_subscriber_sees_the_event_of_a_post_made_over_rest(
    socket: ClientConnection, client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))
    await ask(socket, {"id": "1", "authenticate": {"accessToken": alice.token}})
    active = await ask(
        socket, {"id": "2", "subscribe": {"types": ["postbus.posts.v1.PostCreated"]}}
    )
    assert active == {"id": "2", "subscribed": {}}

    post = (await client.post("/v1/posts", json={"title": "News"}, headers=alice.headers)).json()

    async with asyncio.timeout(5):
        while True:  # other tests publish events too
            delivery = json.loads(await socket.recv())
            if delivery["event"]["subject"] == post["id"]:
                break
    assert delivery["id"] == "2"
    assert delivery["event"]["data"]["post"] == post


async def test_call_before_authentication_is_refused(socket: ClientConnection) -> None:
    received = await ask(
        socket, {"id": "1", "call": {"method": "postbus.users.v1.UsersService.GetMe"}}
    )

    assert received["error"]["code"] == "CODE_UNAUTHENTICATED"
    with pytest.raises(ConnectionClosed) as closed:
        await socket.recv()
    assert (closed.value.rcvd and closed.value.rcvd.code) == 4401


async def test_repeated_operation_id_over_the_socket_is_replayed(
    socket: ClientConnection, client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))
    await ask(socket, {"id": "1", "authenticate": {"accessToken": alice.token}})
    key = unique("key")
    call = {
        "method": "postbus.posts.v1.PostsService.CreatePost",
        "request": {"title": "Once"},
        "operationId": key,
    }

    first = (await ask(socket, {"id": "2", "call": call}))["result"]
    again = (await ask(socket, {"id": "3", "call": call}))["result"]
    over_rest = await client.post(
        "/v1/posts", json={"title": "Once"}, headers=alice.headers | {"Idempotency-Key": key}
    )

    assert (first["replayed"], again["replayed"]) == (False, True)
    assert first["response"] == again["response"]
    assert over_rest.headers["Idempotency-Replayed"] == "true"
    assert over_rest.json()["id"] == first["response"]["post"]["id"]


async def test_compression_is_declined(system: System) -> None:
    async with connect(system.websocket_url, compression="deflate") as offering:
        assert offering.protocol.extensions == []


async def test_misbehaving_clients_are_not_logged(system: System) -> None:
    before = system.log("gateway")

    for _ in range(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x81\x81\0\0\0\0\xff")
        async with asyncio.timeout(5):
            await reader.readexactly(4)
        writer.transport.abort()

    assert system.log("gateway") == before


async def test_failed_call_is_an_error_frame_and_the_socket_stays_open(
    socket: ClientConnection, client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))
    await ask(socket, {"id": "1", "authenticate": {"accessToken": alice.token}})

    async def reason(frame: dict[str, Any]) -> tuple[str, str]:
        error = (await ask(socket, frame))["error"]
        return error["code"], error["reason"]

    def call(method: str, request: dict[str, Any]) -> dict[str, Any]:
        return {"id": "x", "call": {"method": method, "request": request}}

    invalid = call("postbus.posts.v1.CommentsService.GetComment", {"id": "not-an-id"})
    assert await reason(invalid) == ("CODE_INVALID_ARGUMENT", "INVALID_FIELDS")
    internal = call("postbus.bus.v1.HealthService.Check", {})
    assert (await reason(internal))[0] == "CODE_UNIMPLEMENTED"
    unknown = call("postbus.posts.v1.PostsService.Nonsense", {})
    assert (await reason(unknown))[0] == "CODE_UNIMPLEMENTED"
    assert (await ask(socket, call("postbus.users.v1.UsersService.GetMe", {})))["result"]


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"id": "1"}',
        '{"id": 1, "authenticate": {}}',
        '{"id": "1", "authenticate": {"accessToken": "x"}, "subscribe": {"types": ["x"]}}',
        '{"id": "1", "call": {"method": "x", "request": {"@type": 5}}}',
        '{"id": "1", "call": {"method": "x", "request": {"@type": "x/y", "a": 1}}}',
        '{"id": "1", "call": "x"}',
        '{"id": "1", "call": {"method": 5}}',
        '{"id": "1", "call": {"method": "postbus.users.v1.UsersService.GetMe", "request": 5}}',
        '{"id": "1", "call": ' + '{"request": ' * 200 + "{}" + "}" * 201,
        '{"id": "1", "nonsense": {}}',
    ],
)
async def test_malformed_frame_is_an_error_frame_and_the_socket_stays_open(
    socket: ClientConnection, tokens: TokenMaker, frame: str
) -> None:
    token = tokens.token("018f3f6e-0000-7000-8000-000000000001")
    await ask(socket, {"id": "1", "authenticate": {"accessToken": token}})
    await socket.send(frame)

    async with asyncio.timeout(5):
        received = json.loads(await socket.recv())
    assert received["error"]["code"] in {"CODE_INVALID_ARGUMENT", "CODE_UNIMPLEMENTED"}
    assert "error" in await ask(socket, {"id": "2", "cancel": {"call": "none"}})


@pytest.mark.parametrize(
    "type_name", ["postbus.bus.v1.GetStatisticsResponse", "google.protobuf.Any", "postbus.no.Such"]
)
async def test_request_of_another_type_than_the_method_takes_is_refused(
    socket: ClientConnection, tokens: TokenMaker, type_name: str
) -> None:
    token = tokens.token("018f3f6e-0000-7000-8000-000000000001")
    await ask(socket, {"id": "1", "authenticate": {"accessToken": token}})
    call = {
        "method": "postbus.users.v1.UsersService.GetMe",
        "request": {"@type": f"type.googleapis.com/{type_name}", "bounds": [1] * 1000},
    }

    received = await ask(socket, {"id": "2", "call": call})

    assert received["error"]["reason"] == "WRONG_REQUEST_TYPE"


async def test_malformed_events_do_not_stop_later_events(
    socket: ClientConnection, client: httpx.AsyncClient, place: Place, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))
    event = "postbus.posts.v1.PostCreated"
    await ask(socket, {"id": "1", "authenticate": {"accessToken": alice.token}})
    await ask(socket, {"id": "2", "subscribe": {"types": [event]}})
    garbage = [b"", b"\xff" * 9, encode(Event(id="1", type=event, data=b"\xff"))]

    async with await aio_pika.connect(place.amqp_url) as broker:
        exchange = await (await broker.channel()).get_exchange("postbus.events.posts")
        for body in garbage * 40:  # more than the bus handles concurrently
            await exchange.publish(aio_pika.Message(body, user_id="posts"), event)
    post = (await client.post("/v1/posts", json={"title": "News"}, headers=alice.headers)).json()

    async with asyncio.timeout(5):
        while json.loads(await socket.recv())["event"]["subject"] != post["id"]:
            pass


async def test_client_that_floods_is_closed_with_4429(
    system: System, client: httpx.AsyncClient, unique: Unique
) -> None:
    alice = await sign_up(client, unique("alice"))
    flooding = await connect(system.websocket_url, max_queue=1)
    await ask(flooding, {"id": "1", "authenticate": {"accessToken": alice.token}})
    frame = json.dumps({"id": "x" * 64, "unsubscribe": {"subscription": "none"}})

    async with asyncio.timeout(30):
        with suppress(ConnectionClosed):
            for _ in range(2000):  # twice the burst that is allowed
                await flooding.send(frame)
        with suppress(ConnectionClosed):
            async for _ in flooding:
                pass

    assert (flooding.close_code, flooding.close_reason) == (4429, "TOO_MANY_FRAMES")
    async with connect(system.websocket_url) as other:
        assert (await ask(other, {"id": "1", "authenticate": {"accessToken": "x"}}))["error"]
