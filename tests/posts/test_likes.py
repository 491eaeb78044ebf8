"""Likes: counters, and the lists of likers."""

import asyncio
from collections.abc import Callable

import httpx

from tests.people import Client, Person, sign_up

Unique = Callable[[str], str]
FANS = 40


async def new_post(by: Client, **fields: object) -> str:
    post = await by.done("POST", "/v1/posts", {"title": "Loved", **fields})
    return f"/v1/posts/{post['id']}"


async def test_concurrent_likes_by_many_users_all_count(
    client: httpx.AsyncClient, as_alice: Client, as_anonymous: Client, unique: Unique
) -> None:
    path = await new_post(as_alice)
    fans = [Client(client, await sign_up(client, unique("fan"))) for _ in range(FANS)]

    liked = await asyncio.gather(*(fan.send("PUT", f"{path}/like") for fan in fans))
    after = (await as_anonymous.done("GET", path))["likeCount"]
    unliked = await asyncio.gather(*(fan.send("DELETE", f"{path}/like") for fan in fans[:15]))

    assert {response.status_code for response in liked} == {200}
    counts = sorted(response.json()["likeCount"] for response in liked)
    assert all(1 <= count <= place for place, count in enumerate(counts, 1))  # with its own like
    assert (after, {response.status_code for response in unliked}) == (FANS, {200})
    assert (await as_anonymous.done("GET", path))["likeCount"] == FANS - 15


async def test_answer_to_every_like_of_a_user_includes_that_like(
    as_alice: Client, as_bob: Client, unique: Unique
) -> None:
    """Also the answer to a repeated request, and to a further request without an effect."""
    path = await new_post(as_alice)
    key = {"Idempotency_Key": unique("key")}

    responses = [await as_bob.send("PUT", f"{path}/like", **key)]
    await as_alice.done("PUT", f"{path}/like")
    responses += [
        await as_bob.send("PUT", f"{path}/like", **each) for each in (key, dict[str, str]())
    ]

    found = [(each.json()["likeCount"], each.json()["liked"]) for each in responses]
    assert found == [(1, True), (1, True), (2, True)]
    assert responses[1].headers["idempotency-replayed"] == "true"


async def test_likers_of_a_post_are_listed_latest_first(
    client: httpx.AsyncClient, as_alice: Client, as_anonymous: Client, unique: Unique
) -> None:
    path, other = await new_post(as_alice), await new_post(as_alice)
    people = [await sign_up(client, unique("fan")) for _ in range(5)]
    for person in people:
        await Client(client, person).done("PUT", f"{path}/like")
    await Client(client, people[0]).done("PUT", f"/v1/users/{people[4].username}/follow")

    found = await as_anonymous.all(f"{path}/likes", "likers", size=2)
    page = await Client(client, people[0]).done("GET", f"{path}/likes?includeTotal=true")
    token = (await as_anonymous.done("GET", f"{path}/likes?pageSize=1"))["nextPageToken"]

    assert [each["id"] for each in found] == [person.id for person in people[::-1]]
    assert [each["username"] for each in page["likers"]] == [p.username for p in people[::-1]]
    assert [each["followed"] for each in page["likers"]] == [True, *4 * [False]]
    assert page["total"] == 5
    foreign = await as_anonymous.refused("GET", f"{other}/likes?pageToken={token}")
    assert foreign == (422, "PAGE_TOKEN_INVALID")
    await Client(client, people[4]).done("DELETE", f"{path}/like")
    assert (await as_anonymous.done("GET", f"{path}/likes"))["likers"][0]["id"] == people[3].id


async def test_likers_of_a_draft_are_listed_only_for_its_author(
    as_alice: Client, as_bob: Client, bob: Person
) -> None:
    path = await new_post(as_alice)
    await as_bob.done("PUT", f"{path}/like")
    await as_alice.done("POST", f"{path}:unpublish")

    assert [each["id"] for each in (await as_alice.done("GET", f"{path}/likes"))["likers"]] == [
        bob.id
    ]
    assert await as_bob.refused("GET", f"{path}/likes") == (404, "POST_NOT_FOUND")


async def test_concurrent_likes_by_one_user_count_once(
    as_alice: Client, as_bob: Client, as_anonymous: Client
) -> None:
    path = await new_post(as_alice)

    responses = await asyncio.gather(*(as_bob.done("PUT", f"{path}/like") for _ in range(20)))

    assert {response["likeCount"] for response in responses} == {1}
    assert (await as_bob.done("GET", path))["liked"]
    assert not (await as_anonymous.done("GET", path))["liked"]
    unliked = await asyncio.gather(*(as_bob.done("DELETE", f"{path}/like") for _ in range(20)))
    assert {response["likeCount"] for response in unliked} == {0}
    assert not (await as_bob.done("GET", path))["liked"]


async def test_lists_mark_the_posts_that_the_caller_likes(
    as_alice: Client, as_bob: Client, alice: Person
) -> None:
    path = await new_post(as_alice)
    other = await new_post(as_alice)
    await as_bob.done("PUT", f"/v1/users/{alice.username}/follow")
    await as_bob.done("PUT", f"{path}/like")

    for place in (f"/v1/posts?author={alice.username}", "/v1/feed"):
        posts = (await as_bob.done("GET", place))["posts"]
        liked = {f"/v1/posts/{each['id']}": each["liked"] for each in posts}
        assert liked == {path: True, other: False}
    of_alice = (await as_alice.done("GET", f"/v1/posts?author={alice.username}"))["posts"]
    assert [each["liked"] for each in of_alice] == [False, False]


async def test_unpublished_post_keeps_its_likes(
    as_alice: Client, as_bob: Client, bob: Person
) -> None:
    path = await new_post(as_alice)
    await as_bob.done("PUT", f"{path}/like")
    liked = f"/v1/posts?likedBy={bob.username}&includeTotal=true"
    await as_alice.done("POST", f"{path}:unpublish")

    hidden = await as_alice.done("GET", liked)
    refused = [await as_bob.refused(verb, f"{path}/like") for verb in ("PUT", "DELETE")]
    own = await as_alice.done("GET", f"{liked}&status=POST_STATUS_DRAFT")
    await as_alice.done("POST", f"{path}:publish")

    assert (hidden["posts"], hidden["total"], own["total"]) == ([], 0, 1)
    assert refused == [(404, "POST_NOT_FOUND")] * 2
    listed = await as_bob.done("GET", liked)
    assert [(each["likeCount"], each["liked"]) for each in listed["posts"]] == [(1, True)]


async def test_like_needs_an_account(as_alice: Client, as_anonymous: Client) -> None:
    path = await new_post(as_alice)

    for verb in ("PUT", "DELETE"):
        assert await as_anonymous.refused(verb, f"{path}/like") == (401, "TOKEN_MISSING")
