"""Drafts: there for their authors alone, until they are published."""

import asyncio
import json
from collections.abc import Callable

from websockets.asyncio.client import connect

from tests.people import Client, Person, ask
from tests.system import System

Unique = Callable[[str], str]


async def test_draft_is_there_for_its_author_alone(
    as_alice: Client, as_bob: Client, as_nobody: Client, alice: Person, unique: Unique
) -> None:
    tag = unique("draft")
    draft = {"title": unique("draft "), "tags": [tag], "status": "POST_STATUS_DRAFT"}
    post = await as_alice.done("POST", "/v1/posts", draft)

    assert "publishedAt" not in post
    for name in (post["id"], post["slug"]):
        assert (await as_alice.done("GET", f"/v1/posts/{name}"))["status"] == "POST_STATUS_DRAFT"
        for other in (as_bob, as_nobody):
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
    tags = await as_nobody.all("/v1/tags", "tags")
    assert tag not in [each["name"] for each in tags]


async def test_published_draft_stands_where_it_was_first_published(
    as_alice: Client, alice: Person
) -> None:
    draft = await as_alice.done("POST", "/v1/posts", {"title": "1", "status": "POST_STATUS_DRAFT"})
    second = await as_alice.done("POST", "/v1/posts", {"title": "2"})
    path = f"/v1/posts/{draft['id']}"

    published = await as_alice.done("POST", f"{path}:publish")
    third = await as_alice.done("POST", "/v1/posts", {"title": "3"})
    unpublished = await as_alice.done("POST", f"{path}:unpublish")
    again = await as_alice.done("POST", f"{path}:publish")
    same = await as_alice.done("POST", f"{path}:publish")

    assert unpublished["status"] == "POST_STATUS_DRAFT"
    assert again["publishedAt"] == published["publishedAt"] > draft["createdAt"]
    assert [each["version"] for each in (published, unpublished, again, same)] == list("2344")
    listed = await as_alice.done("GET", f"/v1/posts?author={alice.username}")
    ids = [third["id"], draft["id"], second["id"]]
    assert [post["id"] for post in listed["posts"]] == ids


async def test_published_many_times_at_once_it_is_published_once(as_alice: Client) -> None:
    draft = await as_alice.done("POST", "/v1/posts", {"title": "D", "status": "POST_STATUS_DRAFT"})
    path = f"/v1/posts/{draft['id']}"

    answers = await asyncio.gather(*(as_alice.done("POST", f"{path}:publish") for _ in range(8)))
    back = await asyncio.gather(*(as_alice.done("POST", f"{path}:unpublish") for _ in range(8)))

    assert {(each["version"], each["publishedAt"]) for each in answers} == {
        ("2", answers[0]["publishedAt"])
    }
    assert {(each["version"], each["status"]) for each in back} == {("3", "POST_STATUS_DRAFT")}


async def test_comments_and_likes_wait_with_a_post_that_became_a_draft(
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
    again = await as_bob.done("GET", path)
    assert (again["likeCount"], again["commentCount"], again["liked"]) == (1, 1, True)


async def test_post_that_became_a_draft_leaves_lists_feed_and_tags(
    as_alice: Client, as_bob: Client, as_nobody: Client, alice: Person, unique: Unique
) -> None:
    tag = unique("tag")
    post = await as_alice.done("POST", "/v1/posts", {"title": "Out", "tags": [tag]})
    await as_bob.done("PUT", f"/v1/users/{alice.username}/follow")

    async def seen() -> list[int]:
        lists = ("/v1/feed?", f"/v1/posts?author={alice.username}&", f"/v1/posts?tag={tag}&")
        pages = [await as_bob.done("GET", f"{path}includeTotal=true") for path in lists]
        tags = [each["name"] for each in await as_nobody.all("/v1/tags", "tags")]
        return [*(len(page["posts"]) + page["total"] for page in pages), tags.count(tag)]

    assert await seen() == [2, 2, 2, 1]
    await as_alice.done("POST", f"/v1/posts/{post['id']}:unpublish")
    assert await seen() == [0, 0, 0, 0]
    await as_alice.done("POST", f"/v1/posts/{post['id']}:publish")
    assert await seen() == [2, 2, 2, 1]


async def test_draft_that_is_deleted_is_gone_for_its_author(as_alice: Client) -> None:
    draft = await as_alice.done("POST", "/v1/posts", {"title": "D", "status": "POST_STATUS_DRAFT"})
    path = f"/v1/posts/{draft['id']}"

    await as_alice.done("DELETE", path)

    assert await as_alice.refused("GET", path) == (404, "POST_NOT_FOUND")
    assert (await as_alice.done("GET", "/v1/posts?status=POST_STATUS_DRAFT"))["posts"] == []


async def test_draft_takes_its_plain_slug_when_it_is_published(
    as_alice: Client, as_bob: Client, unique: Unique
) -> None:
    title = unique("wanted")
    drafts = [
        await as_alice.done("POST", "/v1/posts", {"title": title, "status": "POST_STATUS_DRAFT"})
        for _ in range(2)
    ]

    first = await as_alice.done("POST", f"/v1/posts/{drafts[0]['id']}:publish")
    second = await as_alice.done("POST", f"/v1/posts/{drafts[1]['id']}:publish")

    assert all(draft["slug"].startswith(f"{title}-") for draft in drafts)
    assert first["slug"] == title
    assert second["slug"].startswith(f"{title}-")
    assert (await as_bob.done("GET", f"/v1/posts/{drafts[0]['slug']}"))["id"] == first["id"]


async def test_nobody_hears_of_a_draft_that_was_never_published(
    system: System, as_alice: Client, bob: Person
) -> None:
    types = [f"postbus.posts.v1.Post{kind}" for kind in ("Created", "Updated", "Deleted")]
    draft = await as_alice.done("POST", "/v1/posts", {"title": "D", "status": "POST_STATUS_DRAFT"})
    async with connect(system.websocket_url) as socket:
        await ask(socket, {"id": "1", "authenticate": {"accessToken": bob.token}})
        await ask(socket, {"id": "2", "subscribe": {"types": types}})
        await as_alice.done("DELETE", f"/v1/posts/{draft['id']}")
        shown = await as_alice.done("POST", "/v1/posts", {"title": "Shown"})
        await as_alice.done("DELETE", f"/v1/posts/{shown['id']}")
        heard = [json.loads(await socket.recv())["event"] for _ in range(2)]

    assert {event["subject"] for event in heard} == {shown["id"]}
