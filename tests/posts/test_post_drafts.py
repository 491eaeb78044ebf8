"""Drafts: readable only for their authors until they are published."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import connect

from tests.people import Client, Person, ask
from tests.system import System

Unique = Callable[[str], str]
DRAFT = {"status": "POST_STATUS_DRAFT"}


async def test_draft_is_readable_only_for_its_author(
    as_alice: Client, as_bob: Client, as_anonymous: Client, alice: Person, unique: Unique
) -> None:
    tag = unique("draft")
    draft = {"title": unique("draft "), "tags": [tag], **DRAFT}
    post = await as_alice.done("POST", "/v1/posts", draft)

    assert "publishedAt" not in post
    for name in (post["id"], post["slug"]):
        assert (await as_alice.done("GET", f"/v1/posts/{name}"))["status"] == "POST_STATUS_DRAFT"
        for other in (as_bob, as_anonymous):
            assert (await other.refused("GET", f"/v1/posts/{name}"))[0] == 404
            comments = f"/v1/posts/{post['id']}/comments"
            assert (await other.refused("GET", comments))[0] == 404
    for verb, path, body in (
        ("PATCH", "", {"title": "Mine"}),
        ("DELETE", "", None),
        ("POST", ":publish", None),
        ("PUT", "/like", None),
        ("POST", "/comments", {"body": "Seen"}),
    ):
        refusal = await as_bob.refused(verb, f"/v1/posts/{post['id']}{path}", body)
        assert refusal == (404, "POST_NOT_FOUND")
    for path in (
        f"/v1/posts?tag={tag}",
        f"/v1/posts?author={alice.username}",
        f"/v1/posts?q={tag}",
    ):
        assert (await as_alice.done("GET", path))["posts"] == []
    tags = await as_anonymous.all("/v1/tags", "tags")
    assert tag not in [each["name"] for each in tags]


async def test_published_draft_is_sorted_by_its_first_publication(
    as_alice: Client, alice: Person
) -> None:
    draft = await as_alice.done("POST", "/v1/posts", {"title": "1", **DRAFT})
    second = await as_alice.done("POST", "/v1/posts", {"title": "2"})
    path = f"/v1/posts/{draft['id']}"

    published = await as_alice.done("POST", f"{path}:publish")
    third = await as_alice.done("POST", "/v1/posts", {"title": "3"})
    unpublished = await as_alice.done("POST", f"{path}:unpublish")
    republished = await as_alice.done("POST", f"{path}:publish")
    same = await as_alice.done("POST", f"{path}:publish")

    assert unpublished["status"] == "POST_STATUS_DRAFT"
    assert republished["publishedAt"] == published["publishedAt"] > draft["createdAt"]
    assert [each["version"] for each in (published, unpublished, republished, same)] == list("2344")
    listed = await as_alice.done("GET", f"/v1/posts?author={alice.username}")
    ids = [third["id"], draft["id"], second["id"]]
    assert [post["id"] for post in listed["posts"]] == ids


async def test_concurrent_publications_have_one_effect(as_alice: Client) -> None:
    draft = await as_alice.done("POST", "/v1/posts", {"title": "D", **DRAFT})
    path = f"/v1/posts/{draft['id']}"

    responses = await asyncio.gather(*(as_alice.done("POST", f"{path}:publish") for _ in range(8)))
    back = await asyncio.gather(*(as_alice.done("POST", f"{path}:unpublish") for _ in range(8)))

    assert {(each["version"], each["publishedAt"]) for each in responses} == {
        ("2", responses[0]["publishedAt"])
    }
    assert {(each["version"], each["status"]) for each in back} == {("3", "POST_STATUS_DRAFT")}


async def test_unpublished_post_keeps_its_comments_and_likes(
    as_alice: Client, as_bob: Client
) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": "Later"})
    path = f"/v1/posts/{post['id']}"
    await as_bob.done("PUT", f"{path}/like")
    comment = await as_bob.done("POST", f"{path}/comments", {"body": "First"})
    await as_alice.done("POST", f"{path}:unpublish")

    own = (await as_alice.done("GET", f"{path}/comments"))["comments"]
    unread = await as_bob.refused("GET", f"{path}/comments")
    unchanged = await as_bob.refused("PATCH", f"/v1/comments/{comment['id']}", {"body": "x"})
    await as_alice.done("POST", f"{path}:publish")

    assert [each["id"] for each in own] == [comment["id"]]
    assert unread == unchanged == (404, "POST_NOT_FOUND")
    republished = await as_bob.done("GET", path)
    assert (republished["likeCount"], republished["commentCount"], republished["liked"]) == (
        1,
        1,
        True,
    )


async def test_unpublished_post_is_not_in_lists_feed_and_tags(
    as_alice: Client, as_bob: Client, as_anonymous: Client, alice: Person, unique: Unique
) -> None:
    tag = unique("tag")
    post = await as_alice.done("POST", "/v1/posts", {"title": "Out", "tags": [tag]})
    await as_bob.done("PUT", f"/v1/users/{alice.username}/follow")

    async def listed_items() -> list[int]:
        lists = ("/v1/feed?", f"/v1/posts?author={alice.username}&", f"/v1/posts?tag={tag}&")
        pages = [await as_bob.done("GET", f"{path}includeTotal=true") for path in lists]
        tags = [each["name"] for each in await as_anonymous.all("/v1/tags", "tags")]
        return [*(len(page["posts"]) + page["total"] for page in pages), tags.count(tag)]

    assert await listed_items() == [2, 2, 2, 1]
    await as_alice.done("POST", f"/v1/posts/{post['id']}:unpublish")
    assert await listed_items() == [0, 0, 0, 0]
    await as_alice.done("POST", f"/v1/posts/{post['id']}:publish")
    assert await listed_items() == [2, 2, 2, 1]


async def test_deleted_draft_is_not_found(as_alice: Client) -> None:
    draft = await as_alice.done("POST", "/v1/posts", {"title": "D", **DRAFT})
    path = f"/v1/posts/{draft['id']}"

    await as_alice.done("DELETE", path)

    assert await as_alice.refused("GET", path) == (404, "POST_NOT_FOUND")
    assert (await as_alice.done("GET", "/v1/posts?status=POST_STATUS_DRAFT"))["posts"] == []


async def test_draft_gets_its_plain_slug_when_published(
    as_alice: Client, as_bob: Client, unique: Unique
) -> None:
    title = unique("wanted")
    drafts = [await as_alice.done("POST", "/v1/posts", {"title": title, **DRAFT}) for _ in range(2)]

    first = await as_alice.done("POST", f"/v1/posts/{drafts[0]['id']}:publish")
    second = await as_alice.done("POST", f"/v1/posts/{drafts[1]['id']}:publish")

    assert all(draft["slug"].startswith(f"{title}-") for draft in drafts)
    assert first["slug"] == title
    assert second["slug"].startswith(f"{title}-")
    assert (await as_bob.done("GET", f"/v1/posts/{drafts[0]['slug']}"))["id"] == first["id"]


async def test_deletion_of_an_unpublished_draft_publishes_no_event(
    system: System, as_alice: Client, bob: Person
) -> None:
    types = [f"postbus.posts.v1.Post{kind}" for kind in ("Created", "Updated", "Deleted")]
    draft = await as_alice.done("POST", "/v1/posts", {"title": "D", **DRAFT})
    async with connect(system.websocket_url) as socket:
        await ask(socket, {"id": "1", "authenticate": {"accessToken": bob.token}})
        await ask(socket, {"id": "2", "subscribe": {"types": types}})
        await as_alice.done("DELETE", f"/v1/posts/{draft['id']}")
        published_post = await as_alice.done("POST", "/v1/posts", {"title": "Shown"})
        await as_alice.done("DELETE", f"/v1/posts/{published_post['id']}")
        received = [json.loads(await socket.recv())["event"] for _ in range(2)]

    assert {event["subject"] for event in received} == {published_post["id"]}


async def test_draft_publishes_no_event(
    system: System, as_alice: Client, alice: Person, bob: Person
) -> None:
    kinds = ("Created", "Updated", "Published", "Unpublished", "Deleted")
    types = [f"postbus.posts.v1.Post{kind}" for kind in kinds]
    async with connect(system.websocket_url) as socket:
        await ask(socket, {"id": "1", "authenticate": {"accessToken": bob.token}})
        await ask(socket, {"id": "2", "subscribe": {"types": types}})
        draft = await as_alice.done("POST", "/v1/posts", {"title": "Secret", **DRAFT})
        path = f"/v1/posts/{draft['id']}"
        await as_alice.done("PATCH", path, {"title": "More secret"})
        await as_alice.done("POST", f"{path}:publish")
        await as_alice.done("POST", f"{path}:unpublish")
        await as_alice.done("PATCH", path, {"title": "Secret again"})
        received: list[Any] = []
        while len(received) < 2:
            event = json.loads(await socket.recv())["event"]
            if event["subject"] == draft["id"]:
                received.append(event["data"])
        last = await as_alice.done("POST", "/v1/posts", {"title": "Last"})
        while (event := json.loads(await socket.recv())["event"])["subject"] != last["id"]:
            assert event["subject"] != draft["id"]

    assert [each["@type"].rpartition(".")[2] for each in received] == [
        "PostPublished",
        "PostUnpublished",
    ]
    assert received[0]["post"]["title"] == "More secret"
