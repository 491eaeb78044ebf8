"""The feed, which shows a user's own follows immediately."""

from typing import Any

from pymongo.asynchronous.database import AsyncDatabase
from uuid_utils.compat import uuid7

from posts.models import PUBLISHED, Author
from posts.stored_times import sort_key
from tests.people import Client, Person, eventually
from tests.posts.test_query_plans import a_post
from tests.system import System

Database = AsyncDatabase[dict[str, Any]]
FOLLOWED = 105  # one query selects at most 100 authors


async def titles(by: Client, path: str) -> list[str]:
    return [each["title"] for each in (await by.done("GET", path))["posts"]]


async def test_follow_shows_in_the_feed_at_once(
    as_alice: Client, as_bob: Client, alice: Person
) -> None:
    await as_alice.done("POST", "/v1/posts", {"title": "First"})
    await as_alice.done("POST", "/v1/posts", {"title": "Draft", "status": "POST_STATUS_DRAFT"})
    path = f"/v1/users/{alice.username}/follow"

    for _ in range(20):
        await as_bob.done("PUT", path)
        assert await titles(as_bob, "/v1/feed") == ["First"]
        author = (await as_bob.done("GET", f"/v1/posts?author={alice.username}"))["posts"][0]
        assert author["author"]["followed"]
        await as_bob.done("DELETE", path)
        assert await titles(as_bob, "/v1/feed") == []


async def store_followed_author(database: Database, follower_id: str, number: int) -> None:
    """Store an author with a post, and a follow of the author."""
    author_id, post_id = f"author {number} of {follower_id}", str(uuid7())
    author = Author(id=author_id, username=f"author{number}", name_key=f"author{number}")
    post = a_post(number).model_dump_doc() | {
        "_id": post_id,
        "author_id": author_id,
        "title": str(number),
        "slugs": [post_id],
        "status": PUBLISHED,
        "place": sort_key(number, post_id),
    }
    follow = {"follower_id": follower_id, "followed_id": author_id}
    await database["authors"].insert_one(author.model_dump_doc())
    await database["posts"].insert_one(post)
    await database["follows"].insert_one({"_id": f"{follower_id}/{author_id}", **follow})


async def test_feed_has_the_latest_posts_of_all_followed_users(
    database: Database, alice: Person, as_alice: Client, as_anonymous: Client
) -> None:
    await as_alice.done("POST", "/v1/posts", {"title": "Mine"})  # stores Alice as an author
    for number in range(FOLLOWED):
        await store_followed_author(database, alice.id, number)

    found = await as_alice.all("/v1/feed", "posts", size=50)
    page = await as_alice.done("GET", "/v1/feed?pageSize=1&includeTotal=true")

    assert [each["title"] for each in found] == [
        str(number) for number in reversed(range(FOLLOWED))
    ]
    assert all(each["author"]["followed"] for each in found)
    assert page["total"] == FOLLOWED
    assert await as_anonymous.refused("GET", "/v1/feed") == (401, "TOKEN_MISSING")


async def test_feed_pages_have_each_post_once_during_writes(
    as_alice: Client, as_bob: Client, alice: Person
) -> None:
    await as_bob.done("PUT", f"/v1/users/{alice.username}/follow")
    for number in range(5):
        await as_alice.done("POST", "/v1/posts", {"title": str(number), "body": "Body"})
    found: list[tuple[str, str]] = []
    token = ""

    while len(found) < 10:
        page = await as_bob.done("GET", f"/v1/feed?pageSize=2&pageToken={token}")
        found += [(each["title"], each["body"]) for each in page["posts"]]
        await as_alice.done("POST", "/v1/posts", {"title": "Later"})
        token = page["nextPageToken"]
        if not token:
            break

    assert found == [(str(number), "") for number in (4, 3, 2, 1, 0)]


async def test_feed_uses_the_projection_while_users_is_unavailable(
    system: System, as_alice: Client, as_bob: Client, alice: Person
) -> None:
    await as_alice.done("POST", "/v1/posts", {"title": "Known"})
    await as_bob.done("PUT", f"/v1/users/{alice.username}/follow")

    async def follow_stored() -> bool:  # the same consumer stores and notifies
        return bool((await as_alice.done("GET", "/v1/notifications"))["notifications"])

    await eventually(follow_stored)
    await system.stop("users")
    try:
        [post] = (await as_bob.done("GET", "/v1/feed"))["posts"]
        mine = await as_alice.done("POST", "/v1/posts", {"title": "Mine"})
    finally:
        await system.start("users")
        await system.until_ready()

    assert (post["title"], post["author"]["username"]) == ("Known", alice.username)
    assert post["author"]["followed"]
    assert mine["author"]["username"] == alice.username
