"""What goes with a post or a user who is gone, and the repair that tells."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from tests.people import Client, Person, eventually, sign_up
from tests.system import System

Unique = Callable[[str], str]
Database = AsyncDatabase[dict[str, Any]]


@pytest.fixture
async def database(system: System) -> AsyncIterator[Database]:
    """What `posts` has stored."""
    url = system.databases("posts")["POSTBUS_MONGO_URL"]
    async with AsyncMongoClient[dict[str, Any]](url) as client:
        yield client.get_default_database()


async def test_deleted_user_leaves_nothing(
    client: httpx.AsyncClient,
    database: Database,
    as_alice: Client,
    as_bob: Client,
    as_nobody: Client,
    alice: Person,
    bob: Person,
    unique: Unique,
) -> None:
    tag = unique("gone")
    hers = (await as_alice.done("POST", "/v1/posts", {"title": "Hers"}))["id"]
    his = (await as_bob.done("POST", "/v1/posts", {"title": "His", "tags": [tag]}))["id"]
    draft = {"title": "Draft", "tags": [tag], "status": "POST_STATUS_DRAFT"}
    await as_bob.done("POST", "/v1/posts", draft)
    for path in (hers, his):
        await as_alice.done("PUT", f"/v1/posts/{path}/like")
        await as_bob.done("PUT", f"/v1/posts/{path}/like")
        await as_alice.done("POST", f"/v1/posts/{path}/comments", {"body": f"@{bob.username}"})
    for _ in range(120):  # more than one step takes
        await as_bob.done("POST", f"/v1/posts/{hers}/comments", {"body": "Bye"})
    await as_bob.done("PUT", f"/v1/users/{alice.username}/follow")
    await as_bob.done("DELETE", "/v1/me")

    for verb, path, body in (
        ("POST", "/v1/posts", {"title": "Back"}),
        ("PUT", f"/v1/posts/{hers}/like", None),
        ("POST", f"/v1/posts/{hers}/comments", {"body": "Back"}),
    ):
        assert await as_bob.refused(verb, path, body) == (401, "SESSION_REVOKED")
    of_bob = {
        "posts": [{"author_id": bob.id}],
        "comments": [{"author_id": bob.id}, {"post_id": his}],
        "likes": [{"user_id": bob.id}, {"post_id": his}],
        "follows": [{"follower_id": bob.id}, {"followed_id": bob.id}],
        "notifications": [{"user_id": bob.id}, {"actor_id": bob.id}, {"post_id": his}],
    }

    async def gone() -> bool:
        counts = [
            await database[name].count_documents({"$or": queries})
            for name, queries in of_bob.items()
        ]
        return not any(counts)

    await eventually(gone)
    post = await as_nobody.done("GET", f"/v1/posts/{hers}")
    assert (post["likeCount"], post["commentCount"]) == (1, 1)
    assert (await as_nobody.refused("GET", f"/v1/posts/{his}"))[0] == 404
    assert tag not in [each["name"] for each in await as_nobody.all("/v1/tags", "tags")]
    assert (await as_nobody.done("GET", f"/v1/users/{alice.username}"))["followerCount"] == 0
    assert (await sign_up(client, bob.username)).id != bob.id


async def test_deleted_post_takes_its_comments_and_likes_with_it(
    database: Database, as_alice: Client, as_bob: Client
) -> None:
    id_ = (await as_alice.done("POST", "/v1/posts", {"title": "Gone"}))["id"]
    await as_bob.done("PUT", f"/v1/posts/{id_}/like")
    comment = (await as_bob.done("POST", f"/v1/posts/{id_}/comments", {"body": "x"}))["id"]
    await as_alice.done("DELETE", f"/v1/posts/{id_}")

    async def gone() -> bool:
        names = ("comments", "likes", "notifications")
        return not any([await database[name].count_documents({"post_id": id_}) for name in names])

    await eventually(gone)
    refusal = await as_bob.refused("PATCH", f"/v1/comments/{comment}", {"body": "x"})
    assert refusal[0] == 404


async def test_repair_sets_right_what_is_wrong_and_says_what(
    system: System, database: Database, as_alice: Client, as_bob: Client, unique: Unique
) -> None:
    tag, gone = unique("wrong"), unique("gone")
    id_ = (await as_alice.done("POST", "/v1/posts", {"title": "Wrong", "tags": [tag]}))["id"]
    await as_bob.done("PUT", f"/v1/posts/{id_}/like")
    await database["posts"].update_one(
        {"_id": id_}, {"$set": {"like_count": 7, "comment_count": -1}}
    )
    await database["tags"].update_one({"_id": tag}, {"$set": {"post_count": 0}})
    await database["likes"].insert_one({"_id": f"{gone}/x", "post_id": gone, "user_id": "x"})
    await database["authors"].insert_one({"_id": gone, "deleted": True, "name_key": ""})
    await database["comments"].insert_one({"_id": gone, "post_id": id_, "author_id": gone})

    first = (await system.output("posts", "repair")).splitlines()
    again = (await system.output("posts", "repair")).splitlines()

    assert sorted(first[:-1]) == sorted(
        [
            f"posts: 1 comments of the deleted user {gone}",
            f"posts: 1 likes of the deleted post {gone}",
            f"posts: post {id_}: like_count 1 instead of 7",
            f"posts: post {id_}: comment_count 0 instead of -1",
            f"posts: tag {tag}: 1 posts instead of 0",
        ]
    )
    assert first[-1].endswith(" posts, 5 things were wrong")
    assert len(again) == 1
    assert again[0].endswith(" posts, 0 things were wrong")
    post = await as_alice.done("GET", f"/v1/posts/{id_}")
    assert (post["likeCount"], post["commentCount"]) == (1, 0)
