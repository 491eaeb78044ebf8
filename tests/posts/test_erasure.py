"""The erasure of the content of deleted posts and users."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
from pymongo.asynchronous.database import AsyncDatabase

from shared.outbox.inbox import Operation
from tests.people import Client, Person, eventually, sign_up

Unique = Callable[[str], str]
Database = AsyncDatabase[dict[str, Any]]
CONTENT = {
    "author_id": "x",
    "user_id": "x",
    "actor_id": "x",
    "body": "x",
    "place": "x",
    "kind": 1,
    "created_at": 1,
    "updated_at": 1,
    "expires_at": datetime(2100, 1, 1, tzinfo=UTC),
}


async def test_deletion_of_a_user_erases_their_content(
    client: httpx.AsyncClient,
    database: Database,
    as_alice: Client,
    as_bob: Client,
    as_anonymous: Client,
    alice: Person,
    bob: Person,
    unique: Unique,
) -> None:
    tag = unique("erased")
    alices_post = (await as_alice.done("POST", "/v1/posts", {"title": "Hers"}))["id"]
    bobs_post = (await as_bob.done("POST", "/v1/posts", {"title": "His", "tags": [tag]}))["id"]
    draft = {"title": "Draft", "tags": [tag], "status": "POST_STATUS_DRAFT"}
    await as_bob.done("POST", "/v1/posts", draft)
    for path in (alices_post, bobs_post):
        await as_alice.done("PUT", f"/v1/posts/{path}/like")
        await as_bob.done("PUT", f"/v1/posts/{path}/like")
        await as_alice.done("POST", f"/v1/posts/{path}/comments", {"body": f"@{bob.username}"})
    more = {"author_id": bob.id, "post_id": alices_post}  # than one batch
    await database["comments"].insert_many(
        CONTENT | more | {"_id": f"{alices_post} {number}"} for number in range(120)
    )
    await database["posts"].update_one({"_id": alices_post}, {"$inc": {"comment_count": 120}})
    await as_bob.done("PUT", f"/v1/users/{alice.username}/follow")
    await as_bob.done("DELETE", "/v1/me")

    for verb, path, body in (
        ("POST", "/v1/posts", {"title": "Back"}),
        ("PUT", f"/v1/posts/{alices_post}/like", None),
        ("POST", f"/v1/posts/{alices_post}/comments", {"body": "Back"}),
    ):
        assert await as_bob.refused(verb, path, body) == (401, "SESSION_REVOKED")
    queries_for_bob = {
        "posts": [{"author_id": bob.id}],
        "comments": [{"author_id": bob.id}, {"post_id": bobs_post}],
        "likes": [{"user_id": bob.id}, {"post_id": bobs_post}],
        "follows": [{"follower_id": bob.id}, {"followed_id": bob.id}],
        "notifications": [{"user_id": bob.id}, {"actor_id": bob.id}, {"post_id": bobs_post}],
    }

    async def erased() -> bool:
        counts = [
            await database[name].count_documents({"$or": queries})
            for name, queries in queries_for_bob.items()
        ]
        return not any(counts)

    async def counted() -> bool:
        post = await as_anonymous.done("GET", f"/v1/posts/{alices_post}")
        tags = [each["name"] for each in await as_anonymous.all("/v1/tags", "tags")]
        return (post["likeCount"], post["commentCount"], tag in tags) == (1, 1, False)

    await eventually(erased)
    await eventually(counted)  # the counters of an event are folded after its transaction
    assert (await as_anonymous.refused("GET", f"/v1/posts/{bobs_post}"))[0] == 404
    assert (await as_anonymous.done("GET", f"/v1/users/{alice.username}"))["followerCount"] == 0
    assert (await sign_up(client, bob.username)).id != bob.id


async def test_deletion_of_a_user_erases_their_stored_replies(
    client: httpx.AsyncClient, database: Database, bob: Person
) -> None:
    headers = bob.headers | {"Idempotency-Key": bob.id}
    post = {"title": "Kept once", "body": f"text of {bob.username}"}
    created = await client.post("/v1/posts", json=post, headers=headers)
    created.raise_for_status()
    entries = database["inbox"]
    key = Operation.key_of("call", "postbus.posts.v1.PostsService.CreatePost", bob.id, bob.id)
    assert bob.username.encode() in (await entries.find_one({"_id": key}) or {})["reply"]
    await Client(client, bob).done("DELETE", "/v1/me")

    async def erased() -> bool:
        return not await entries.count_documents({"owner": bob.id})

    await eventually(erased)
    assert (await entries.find_one({"_id": key}) or {})["reply"] is None


async def test_deletion_of_a_post_erases_its_comments_and_likes(
    database: Database, as_alice: Client, as_bob: Client
) -> None:
    id_ = (await as_alice.done("POST", "/v1/posts", {"title": "Deleted"}))["id"]
    await as_bob.done("PUT", f"/v1/posts/{id_}/like")
    comment = (await as_bob.done("POST", f"/v1/posts/{id_}/comments", {"body": "x"}))["id"]
    await as_alice.done("DELETE", f"/v1/posts/{id_}")

    async def erased() -> bool:
        names = ("comments", "likes", "notifications")
        return not any([await database[name].count_documents({"post_id": id_}) for name in names])

    await eventually(erased)
    refusal = await as_bob.refused("PATCH", f"/v1/comments/{comment}", {"body": "x"})
    assert refusal[0] == 404


async def test_content_of_a_deleted_post_is_erased_in_batches(
    database: Database, as_alice: Client, unique: Unique
) -> None:
    id_ = (await as_alice.done("POST", "/v1/posts", {"title": "Popular"}))["id"]
    other = unique("other")
    for name in ("comments", "likes", "notifications"):
        await database[name].insert_many(
            {"_id": unique(name), "key": unique("k"), "post_id": post_id, **CONTENT}
            for post_id in [id_] * 250 + [other]
        )
    await as_alice.done("DELETE", f"/v1/posts/{id_}")

    async def erased() -> bool:
        names = ("comments", "likes", "notifications")
        return not any([await database[name].count_documents({"post_id": id_}) for name in names])

    await eventually(erased)
    for name in ("comments", "likes", "notifications"):
        assert (await database[name].delete_many({"post_id": other})).deleted_count == 1


async def test_deletion_of_a_user_keeps_the_content_of_other_users(
    as_alice: Client, as_bob: Client, as_anonymous: Client, alice: Person, bob: Person
) -> None:
    id_ = (await as_alice.done("POST", "/v1/posts", {"title": "Kept"}))["id"]
    for by in (as_alice, as_bob):
        await by.done("PUT", f"/v1/posts/{id_}/like")
    await as_bob.done("POST", f"/v1/posts/{id_}/comments", {"body": f"@{alice.username}"})
    await as_bob.done("DELETE", "/v1/me")

    async def settled() -> bool:
        post = await as_anonymous.done("GET", f"/v1/posts/{id_}")
        notifications = (await as_alice.done("GET", "/v1/notifications"))["notifications"]
        return (post["likeCount"], post["commentCount"], notifications) == (1, 0, [])

    await eventually(settled)
    assert (await as_alice.done("GET", f"/v1/posts/{id_}"))["liked"]
    assert (await as_alice.done("GET", f"/v1/posts?author={bob.username}"))["posts"] == []
    assert (await as_alice.done("GET", f"/v1/posts?likedBy={bob.username}"))["posts"] == []
