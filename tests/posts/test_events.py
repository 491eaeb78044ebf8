"""What clients hear of posts over the WebSocket."""

import json
from typing import Any

from websockets.asyncio.client import connect

from tests.people import Client, Person, ask
from tests.system import System

KIND = "NOTIFICATION_KIND_"


async def post(by: Client, **fields: object) -> str:
    created = await by.done("POST", "/v1/posts", {"title": "A post", **fields})
    return f"/v1/posts/{created['id']}"


async def test_notification_arrives_at_the_socket_of_its_user_alone(
    system: System, as_alice: Client, as_bob: Client, alice: Person, bob: Person
) -> None:
    path = await post(as_alice)
    types = ["postbus.posts.v1.NotificationCreated", "postbus.posts.v1.PostUpdated"]
    async with connect(system.websocket_url) as hers, connect(system.websocket_url) as his:
        for socket, person in ((hers, alice), (his, bob)):
            await ask(socket, {"id": "1", "authenticate": {"accessToken": person.token}})
            assert "subscribed" in await ask(socket, {"id": "2", "subscribe": {"types": types}})
        await as_bob.done("PUT", f"{path}/like")
        notified = json.loads(await hers.recv())["event"]["data"]
        await as_alice.done("PATCH", path, {"title": "Changed"})
        seen = json.loads(await his.recv())["event"]["data"]

    assert notified["userId"] == alice.id
    assert notified["notification"]["kind"] == KIND + "LIKE"
    assert seen["@type"].endswith("PostUpdated")


async def test_nobody_hears_of_a_draft(
    system: System, as_alice: Client, alice: Person, bob: Person
) -> None:
    kinds = ("Created", "Updated", "Published", "Unpublished", "Deleted")
    types = [f"postbus.posts.v1.Post{kind}" for kind in kinds]
    async with connect(system.websocket_url) as socket:
        await ask(socket, {"id": "1", "authenticate": {"accessToken": bob.token}})
        await ask(socket, {"id": "2", "subscribe": {"types": types}})
        draft = await post(as_alice, title="Secret", status="POST_STATUS_DRAFT")
        await as_alice.done("PATCH", draft, {"title": "More secret"})
        await as_alice.done("POST", f"{draft}:publish")
        await as_alice.done("POST", f"{draft}:unpublish")
        await as_alice.done("PATCH", draft, {"title": "Secret again"})
        heard: list[Any] = []
        while len(heard) < 2:
            event = json.loads(await socket.recv())["event"]
            if event["subject"] in draft:
                heard.append(event["data"])
        last = await post(as_alice, title="Last")
        while (event := json.loads(await socket.recv())["event"])["subject"] not in last:
            assert event["subject"] not in draft

    assert [each["@type"].rpartition(".")[2] for each in heard] == [
        "PostPublished",
        "PostUnpublished",
    ]
    assert heard[0]["post"]["title"] == "More secret"
