"""Notifications: once per cause, while the cause exists, for 90 days."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import betterproto
from pymongo.asynchronous.database import AsyncDatabase
from uuid_utils.compat import uuid7
from websockets.asyncio.client import connect

from postbus.bus.v1 import Event
from postbus.posts.v1 import Author, Comment, CommentCreated, Post, PostCreated, PostLiked
from shared.outbox.inbox import Operation
from shared.wire import encode
from tests.conftest import Place
from tests.people import Client, Person, ask, eventually
from tests.system import System

Unique = Callable[[str], str]
Database = AsyncDatabase[dict[str, Any]]
KIND = "NOTIFICATION_KIND_"
UNKNOWN_ID = "018f3f6e-0000-7000-8000-000000000001"


async def new_post(by: Client, **fields: object) -> str:
    return str((await by.done("POST", "/v1/posts", {"title": "A post", **fields}))["id"])


async def comment(by: Client, post_id: str, body: str = "Text") -> str:
    created = await by.done("POST", f"/v1/posts/{post_id}/comments", {"body": body})
    return str(created["id"])


async def until_notified(user: Client, number: int) -> list[dict[str, Any]]:
    """Wait until the user has this number of notifications; return them, the latest first."""
    found: list[dict[str, Any]] = []

    async def complete() -> bool:
        page = await user.done("GET", "/v1/notifications?pageSize=100")
        found[:] = page["notifications"]
        return len(found) == number

    await eventually(complete)
    return found


async def kinds(user: Client) -> list[tuple[str, str]]:
    """Return the kinds and actors of the user's notifications, the latest first."""
    page = await user.done("GET", "/v1/notifications")
    return [(each["kind"], each["actor"]["username"]) for each in page["notifications"]]


async def until_kinds(user: Client, expected: list[tuple[str, str]]) -> None:
    """Wait until the user has these notifications, in any order."""

    async def complete() -> bool:
        return sorted(await kinds(user)) == sorted(expected)

    try:
        await eventually(complete)
    except TimeoutError:
        raise AssertionError(await kinds(user)) from None


async def deliver(place: Place, message: betterproto.Message, name: str) -> str:
    """Publish an event directly, as if it arrived late; return its operation key."""
    event = Event(
        id=str(uuid7()),
        type=f"postbus.posts.v1.{name}",
        subject=str(uuid7()),
        time=datetime.now(UTC),
        data=encode(message),
        version=1,
    )
    async with await aio_pika.connect(place.amqp_url) as broker:
        exchange = await (await broker.channel()).get_exchange("postbus.events.posts")
        await exchange.publish(aio_pika.Message(encode(event), user_id="posts"), event.type)
    return Operation.key_of("event", f"posts.{event.type}", event.id)


async def test_notification_has_kind_actor_post_comment_and_time(
    as_alice: Client, as_bob: Client, bob: Person
) -> None:
    post_id = await new_post(as_alice)
    before = datetime.now(UTC)
    comment = await as_bob.done("POST", f"/v1/posts/{post_id}/comments", {"body": "Text"})

    [found] = await until_notified(as_alice, 1)

    assert before <= datetime.fromisoformat(found.pop("createdAt")) <= datetime.now(UTC)
    found.pop("id")
    assert found == {
        "kind": "NOTIFICATION_KIND_COMMENT",
        "actor": {
            "id": bob.id,
            "username": bob.username,
            "displayName": "",
            "imageUrl": "",
            "followed": False,
        },
        "postId": post_id,
        "commentId": comment["id"],
        "read": False,
    }


async def test_like_after_an_unlike_is_the_same_notification(
    as_alice: Client, as_bob: Client
) -> None:
    path = f"/v1/posts/{await new_post(as_alice)}/like"
    await as_bob.done("PUT", path)
    [first] = await until_notified(as_alice, 1)

    await as_bob.done("DELETE", path)
    await until_notified(as_alice, 0)
    await as_bob.done("PUT", path)

    [second] = await until_notified(as_alice, 1)
    assert second == first


async def test_repeated_follow_is_notified_once(
    as_alice: Client, as_bob: Client, alice: Person
) -> None:
    path = f"/v1/users/{alice.username}/follow"
    for verb in ("PUT", "DELETE", "PUT", "PUT"):
        await as_bob.done(verb, path)
    await as_bob.done("PUT", f"/v1/posts/{await new_post(as_alice)}/like")

    found = await until_notified(as_alice, 2)

    assert sorted(each["kind"] for each in found) == [
        "NOTIFICATION_KIND_FOLLOW",
        "NOTIFICATION_KIND_LIKE",
    ]


async def test_comment_that_mentions_the_author_of_the_post_is_notified_as_both(
    as_alice: Client, as_bob: Client, alice: Person
) -> None:
    post_id = await new_post(as_alice)
    comments = f"/v1/posts/{post_id}/comments"
    comment = await as_bob.done("POST", comments, {"body": f"@{alice.username} @{alice.username}"})

    found = await until_notified(as_alice, 2)
    await as_alice.done("DELETE", f"/v1/comments/{comment['id']}")

    assert {each["kind"] for each in found} == {
        "NOTIFICATION_KIND_COMMENT",
        "NOTIFICATION_KIND_MENTION",
    }
    assert {each["commentId"] for each in found} == {comment["id"]}
    await until_notified(as_alice, 0)


async def test_no_notification_if_the_cause_is_gone_when_the_event_arrives(
    place: Place,
    database: Database,
    as_alice: Client,
    as_bob: Client,
    alice: Person,
    bob: Person,
) -> None:
    author = Author(id=bob.id, username=bob.username)
    text = f"@{alice.username}"
    draft = await new_post(as_bob, status="POST_STATUS_DRAFT")
    comment = Comment(id=UNKNOWN_ID, post_id=UNKNOWN_ID, author=author, body=text)
    commented = CommentCreated(comment_id=UNKNOWN_ID, comment=comment, post_author_id=alice.id)
    liked = PostLiked(post_id=UNKNOWN_ID, author_id=alice.id, user_id=bob.id)
    existing = await new_post(as_bob)
    created = [
        PostCreated(post_id=id_, post=Post(id=id_, author=author, title=text))
        for id_ in (UNKNOWN_ID, draft, existing)
    ]
    keys = [
        await deliver(place, commented, "CommentCreated"),
        await deliver(place, liked, "PostLiked"),
        *[await deliver(place, event, "PostCreated") for event in created],
    ]

    async def all_handled() -> bool:
        return await database["inbox"].count_documents({"_id": {"$in": keys}}) == 5

    await eventually(all_handled)
    assert [each["postId"] for each in await until_notified(as_alice, 1)] == [existing]


async def test_notifications_are_paged_and_marked_by_id(
    as_alice: Client, as_bob: Client, as_anonymous: Client
) -> None:
    for _ in range(5):
        await as_bob.done("PUT", f"/v1/posts/{await new_post(as_alice)}/like")
    ids = [each["id"] for each in await until_notified(as_alice, 5)]

    paged = await as_alice.all("/v1/notifications", "notifications", size=2)
    marked = await as_alice.done(
        "POST", "/v1/notifications:markRead", {"ids": [ids[0].upper(), ids[3], UNKNOWN_ID]}
    )
    unread = await as_alice.done("GET", "/v1/notifications?unreadOnly=true&includeTotal=true")
    page = await as_alice.done("GET", "/v1/notifications?pageSize=2")

    assert [each["id"] for each in paged] == ids == sorted(ids, reverse=True)
    assert marked == {"unreadCount": 3}
    assert [each["id"] for each in unread["notifications"]] == [ids[1], ids[2], ids[4]]
    assert (unread["total"], unread["unreadCount"]) == (3, 3)
    token = page["nextPageToken"]
    other = f"/v1/notifications?unreadOnly=true&pageToken={token}"
    assert await as_alice.refused("GET", other) == (422, "PAGE_TOKEN_INVALID")
    assert await as_anonymous.refused("GET", "/v1/notifications") == (401, "TOKEN_MISSING")
    many = {"ids": [UNKNOWN_ID] * 101}
    refusal = await as_alice.refused("POST", "/v1/notifications:markRead", many)
    assert refusal == (422, "INVALID_FIELDS")


async def test_user_cannot_mark_notifications_of_another_user(
    as_alice: Client, as_bob: Client
) -> None:
    for _ in range(2):
        await as_bob.done("PUT", f"/v1/posts/{await new_post(as_alice)}/like")
    ids = [each["id"] for each in await until_notified(as_alice, 2)]

    for body in ({"ids": ids}, {}):
        marked = await as_bob.done("POST", "/v1/notifications:markRead", body)
        assert marked == {"unreadCount": 0}

    assert (await as_alice.done("GET", "/v1/notifications"))["unreadCount"] == 2


async def test_notifications_are_kept_for_90_days(
    database: Database, as_alice: Client, as_bob: Client, alice: Person
) -> None:
    await as_bob.done("PUT", f"/v1/posts/{await new_post(as_alice)}/like")
    await until_notified(as_alice, 1)

    stored = await database["notifications"].find_one({"user_id": alice.id})
    indexes = await database["notifications"].index_information()

    assert stored is not None
    left = stored["expires_at"].replace(tzinfo=UTC) - datetime.now(UTC)
    assert timedelta(days=89, hours=23) < left < timedelta(days=90)
    assert indexes["expires_at_1"]["expireAfterSeconds"] == 0


async def test_author_is_notified_of_likes_comments_and_follows_by_other_users(
    as_alice: Client, as_bob: Client, alice: Person, bob: Person
) -> None:
    post_id = await new_post(as_alice)
    for by in (as_alice, as_bob, as_bob):
        await by.done("PUT", f"/v1/posts/{post_id}/like")
    await comment(as_alice, post_id)
    deleted = await comment(as_bob, post_id)
    await comment(as_bob, post_id)
    await as_bob.done("PUT", f"/v1/users/{alice.username}/follow")
    by_bob = [(KIND + kind, bob.username) for kind in ("LIKE", "COMMENT", "COMMENT", "FOLLOW")]

    await until_kinds(as_alice, by_bob)
    assert await kinds(as_bob) == []
    await as_bob.done("DELETE", f"/v1/posts/{post_id}/like")
    await as_bob.done("DELETE", f"/v1/comments/{deleted}")
    await until_kinds(as_alice, by_bob[2:])


async def test_mentioned_user_is_notified_once(
    as_alice: Client, as_bob: Client, alice: Person, bob: Person
) -> None:
    name = bob.username.upper()
    draft = await new_post(
        as_alice, body=f"@{name} and @{name}, not me@{name}", status="POST_STATUS_DRAFT"
    )
    post_id = await new_post(as_alice, title=f"Hello @{name}!")
    await comment(as_alice, post_id, f"@{name}, @{alice.username} and @unknown-user")
    mentioned = (KIND + "MENTION", alice.username)

    await until_kinds(as_bob, [mentioned] * 2)
    await as_alice.done("POST", f"/v1/posts/{draft}:publish")
    await until_kinds(as_bob, [mentioned] * 3)
    assert await kinds(as_alice) == []


async def test_only_the_notified_user_marks_notifications_as_read(
    as_alice: Client, as_bob: Client, bob: Person
) -> None:
    post_id = await new_post(as_alice)
    for _ in range(3):
        await comment(as_bob, post_id)
    await until_kinds(as_alice, [(KIND + "COMMENT", bob.username)] * 3)
    page = await as_alice.done("GET", "/v1/notifications?includeTotal=true&pageSize=2")
    first = page["notifications"][0]

    assert (page["total"], page["unreadCount"], first["read"]) == (3, 3, False)
    assert first["postId"] == post_id
    ids = {"ids": [first["id"]]}
    assert await as_bob.done("POST", "/v1/notifications:markRead", ids) == {"unreadCount": 0}
    assert await as_alice.done("POST", "/v1/notifications:markRead", ids) == {"unreadCount": 2}
    unread = await as_alice.all("/v1/notifications?unreadOnly=true", "notifications", size=1)
    assert first["id"] not in [each["id"] for each in unread]
    assert len(unread) == 2
    assert await as_alice.done("POST", "/v1/notifications:markRead", {}) == {"unreadCount": 0}


async def test_notification_event_is_sent_only_to_its_user(
    system: System, as_alice: Client, as_bob: Client, alice: Person, bob: Person
) -> None:
    path = f"/v1/posts/{await new_post(as_alice)}"
    types = ["postbus.posts.v1.NotificationCreated", "postbus.posts.v1.PostUpdated"]
    async with (
        connect(system.websocket_url) as alice_socket,
        connect(system.websocket_url) as bob_socket,
    ):
        for socket, person in ((alice_socket, alice), (bob_socket, bob)):
            await ask(socket, {"id": "1", "authenticate": {"accessToken": person.token}})
            assert "subscribed" in await ask(socket, {"id": "2", "subscribe": {"types": types}})
        await as_bob.done("PUT", f"{path}/like")
        alice_event = json.loads(await alice_socket.recv())["event"]["data"]
        await as_alice.done("PATCH", path, {"title": "Changed"})
        bob_event = json.loads(await bob_socket.recv())["event"]["data"]

    assert alice_event["userId"] == alice.id
    assert alice_event["notification"]["kind"] == KIND + "LIKE"
    assert bob_event["@type"].endswith("PostUpdated")
