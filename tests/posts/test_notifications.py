"""What users are told of: once, while it is so, and for 90 days."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import betterproto
from pymongo.asynchronous.database import AsyncDatabase
from uuid_utils.compat import uuid7

from postbus.bus.v1 import Event
from postbus.posts.v1 import Author, Comment, CommentCreated, Post, PostCreated, PostLiked
from shared.outbox.inbox import Operation
from shared.wire import encode
from tests.conftest import Place
from tests.people import Client, Person, eventually

Unique = Callable[[str], str]
Database = AsyncDatabase[dict[str, Any]]
NOWHERE = "018f3f6e-0000-7000-8000-000000000001"


async def new_post(by: Client, **fields: object) -> str:
    return str((await by.done("POST", "/v1/posts", {"title": "A post", **fields}))["id"])


async def until_told(to: Client, number: int) -> list[dict[str, Any]]:
    """Wait until the user was told so many things; return them, the latest first."""
    told: list[dict[str, Any]] = []

    async def so() -> bool:
        told[:] = (await to.done("GET", "/v1/notifications?pageSize=100"))["notifications"]
        return len(told) == number

    await eventually(so)
    return told


async def deliver(place: Place, message: betterproto.Message, name: str) -> str:
    """Publish an event as it would come late; return the key that it is done under."""
    event = Event(
        id=str(uuid7()),
        type=f"postbus.posts.v1.{name}",
        subject=str(uuid7()),
        time=datetime.now(UTC),
        data=encode(message),
        version=1,
    )
    async with await aio_pika.connect(place.amqp_url) as broker:
        exchange = await (await broker.channel()).get_exchange("postbus.events")
        await exchange.publish(aio_pika.Message(encode(event)), event.type)
    return Operation.key_of("event", f"posts.{event.type}", event.id)


async def test_notification_says_who_did_what_to_which_post_and_when(
    as_alice: Client, as_bob: Client, bob: Person
) -> None:
    post_id = await new_post(as_alice)
    before = datetime.now(UTC)
    comment = await as_bob.done("POST", f"/v1/posts/{post_id}/comments", {"body": "Text"})

    [told] = await until_told(as_alice, 1)

    assert before <= datetime.fromisoformat(told.pop("createdAt")) <= datetime.now(UTC)
    told.pop("id")
    assert told == {
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


async def test_like_that_is_taken_back_and_given_again_is_the_same_news(
    as_alice: Client, as_bob: Client
) -> None:
    path = f"/v1/posts/{await new_post(as_alice)}/like"
    await as_bob.done("PUT", path)
    [first] = await until_told(as_alice, 1)

    await as_bob.done("DELETE", path)
    await until_told(as_alice, 0)
    await as_bob.done("PUT", path)

    [again] = await until_told(as_alice, 1)
    assert again == first


async def test_follow_that_is_repeated_is_told_once(
    as_alice: Client, as_bob: Client, alice: Person
) -> None:
    path = f"/v1/users/{alice.username}/follow"
    for verb in ("PUT", "DELETE", "PUT", "PUT"):
        await as_bob.done(verb, path)
    await as_bob.done("PUT", f"/v1/posts/{await new_post(as_alice)}/like")

    told = await until_told(as_alice, 2)

    assert sorted(each["kind"] for each in told) == [
        "NOTIFICATION_KIND_FOLLOW",
        "NOTIFICATION_KIND_LIKE",
    ]


async def test_comment_on_ones_post_that_names_one_is_told_as_both(
    as_alice: Client, as_bob: Client, alice: Person
) -> None:
    post_id = await new_post(as_alice)
    comments = f"/v1/posts/{post_id}/comments"
    comment = await as_bob.done("POST", comments, {"body": f"@{alice.username} @{alice.username}"})

    told = await until_told(as_alice, 2)
    await as_alice.done("DELETE", f"/v1/comments/{comment['id']}")

    assert {each["kind"] for each in told} == {
        "NOTIFICATION_KIND_COMMENT",
        "NOTIFICATION_KIND_MENTION",
    }
    assert {each["commentId"] for each in told} == {comment["id"]}
    await until_told(as_alice, 0)


async def test_what_ended_before_its_event_came_is_told_nobody(
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
    comment = Comment(id=NOWHERE, post_id=NOWHERE, author=author, body=text)
    commented = CommentCreated(comment_id=NOWHERE, comment=comment, post_author_id=alice.id)
    liked = PostLiked(post_id=NOWHERE, author_id=alice.id, user_id=bob.id)
    there = await new_post(as_bob)
    created = [
        PostCreated(post_id=id_, post=Post(id=id_, author=author, title=text))
        for id_ in (NOWHERE, draft, there)
    ]
    keys = [
        await deliver(place, commented, "CommentCreated"),
        await deliver(place, liked, "PostLiked"),
        *[await deliver(place, event, "PostCreated") for event in created],
    ]

    async def all_done() -> bool:
        return await database["inbox"].count_documents({"_id": {"$in": keys}}) == 5

    await eventually(all_done)
    assert [each["postId"] for each in await until_told(as_alice, 1)] == [there]


async def test_notifications_are_paged_and_only_their_own_are_marked(
    as_alice: Client, as_bob: Client, as_nobody: Client
) -> None:
    for _ in range(5):
        await as_bob.done("PUT", f"/v1/posts/{await new_post(as_alice)}/like")
    ids = [each["id"] for each in await until_told(as_alice, 5)]

    paged = await as_alice.all("/v1/notifications", "notifications", size=2)
    left = await as_alice.done(
        "POST", "/v1/notifications:markRead", {"ids": [ids[0].upper(), ids[3], NOWHERE]}
    )
    unread = await as_alice.done("GET", "/v1/notifications?unreadOnly=true&includeTotal=true")
    page = await as_alice.done("GET", "/v1/notifications?pageSize=2")

    assert [each["id"] for each in paged] == ids == sorted(ids, reverse=True)
    assert left == {"unreadCount": 3}
    assert [each["id"] for each in unread["notifications"]] == [ids[1], ids[2], ids[4]]
    assert (unread["total"], unread["unreadCount"]) == (3, 3)
    token = page["nextPageToken"]
    other = f"/v1/notifications?unreadOnly=true&pageToken={token}"
    assert await as_alice.refused("GET", other) == (422, "PAGE_TOKEN_INVALID")
    assert await as_nobody.refused("GET", "/v1/notifications") == (401, "TOKEN_MISSING")
    many = {"ids": [NOWHERE] * 101}
    refusal = await as_alice.refused("POST", "/v1/notifications:markRead", many)
    assert refusal == (422, "INVALID_FIELDS")


async def test_nobody_marks_what_others_are_told(as_alice: Client, as_bob: Client) -> None:
    for _ in range(2):
        await as_bob.done("PUT", f"/v1/posts/{await new_post(as_alice)}/like")
    ids = [each["id"] for each in await until_told(as_alice, 2)]

    for body in ({"ids": ids}, {}):
        marked = await as_bob.done("POST", "/v1/notifications:markRead", body)
        assert marked == {"unreadCount": 0}

    assert (await as_alice.done("GET", "/v1/notifications"))["unreadCount"] == 2


async def test_notifications_are_kept_for_90_days(
    database: Database, as_alice: Client, as_bob: Client, alice: Person
) -> None:
    await as_bob.done("PUT", f"/v1/posts/{await new_post(as_alice)}/like")
    await until_told(as_alice, 1)

    stored = await database["notifications"].find_one({"user_id": alice.id})
    indexes = await database["notifications"].index_information()

    assert stored is not None
    left = stored["expires_at"].replace(tzinfo=UTC) - datetime.now(UTC)
    assert timedelta(days=89, hours=23) < left < timedelta(days=90)
    assert indexes["expires_at_1"]["expireAfterSeconds"] == 0
