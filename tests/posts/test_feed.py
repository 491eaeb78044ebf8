"""The feed, and what else a user reads of their own writes on the other service."""

import asyncio
from collections.abc import Callable

import httpx

from tests.people import Client, Person, eventually, sign_up

Unique = Callable[[str], str]


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


async def test_feed_has_the_latest_of_all_who_are_followed(
    client: httpx.AsyncClient, as_alice: Client, as_nobody: Client, unique: Unique
) -> None:
    for number in range(120):
        person = await sign_up(client, unique(f"f{number}x"))
        await Client(client, person).done("POST", "/v1/posts", {"title": str(number)})
        await as_alice.done("PUT", f"/v1/users/{person.username}/follow")

    found = await as_alice.all("/v1/feed", "posts", size=50)
    page = await as_alice.done("GET", "/v1/feed?pageSize=1&includeTotal=true")

    assert [each["title"] for each in found] == [str(number) for number in reversed(range(120))]
    assert all(each["author"]["followed"] for each in found)
    assert page["total"] == 120
    assert await as_nobody.refused("GET", "/v1/feed") == (401, "TOKEN_MISSING")


async def test_new_name_shows_at_once_to_whom_it_belongs(
    as_alice: Client, alice: Person, unique: Unique
) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": "Mine"})
    path = f"/v1/posts/{post['id']}"
    await as_alice.done("POST", f"{path}/comments", {"body": "Mine"})

    for _ in range(20):
        name = unique("renamed")
        await as_alice.done("PATCH", "/v1/me", {"username": name, "displayName": f"D {name}"})
        shown = [
            (await as_alice.done("GET", path))["author"],
            (await as_alice.done("GET", f"/v1/posts?author={name}"))["posts"][0]["author"],
            (await as_alice.done("GET", f"{path}/comments"))["comments"][0]["author"],
            (await as_alice.done("POST", "/v1/posts", {"title": "New"}))["author"],
        ]
        assert {(each["username"], each["displayName"]) for each in shown} == {(name, f"D {name}")}


async def test_new_name_shows_to_everyone_in_the_end(
    as_alice: Client, as_nobody: Client, unique: Unique
) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": "Mine"})
    name = unique("renamed")
    profile = {"username": name, "imageUrl": "https://example.com/a.png"}
    await as_alice.done("PATCH", "/v1/me", profile)

    async def shown() -> bool:
        author = (await as_nobody.done("GET", f"/v1/posts/{post['id']}"))["author"]
        return (author["username"], author["imageUrl"]) == (name, profile["imageUrl"])

    await eventually(shown)


async def test_like_of_the_same_post_by_many_at_once_counts_each(
    client: httpx.AsyncClient, as_alice: Client, as_nobody: Client, unique: Unique
) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": "Loved"})
    path = f"/v1/posts/{post['id']}"
    fans = [Client(client, await sign_up(client, unique("fan"))) for _ in range(40)]

    answers = await asyncio.gather(*(fan.done("PUT", f"{path}/like") for fan in fans))

    assert all(answer["liked"] for answer in answers)
    assert (await as_nobody.done("GET", path))["likeCount"] == 40
    await asyncio.gather(*(fan.done("DELETE", f"{path}/like") for fan in fans[:15]))
    assert (await as_nobody.done("GET", path))["likeCount"] == 25


async def test_like_by_one_user_many_times_at_once_counts_once(
    as_alice: Client, as_bob: Client, as_nobody: Client
) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": "Loved"})
    path = f"/v1/posts/{post['id']}"

    answers = await asyncio.gather(*(as_bob.done("PUT", f"{path}/like") for _ in range(20)))

    assert {answer["likeCount"] for answer in answers} == {1}
    assert (await as_bob.done("GET", path))["liked"]
    assert not (await as_nobody.done("GET", path))["liked"]
    gone = await asyncio.gather(*(as_bob.done("DELETE", f"{path}/like") for _ in range(20)))
    assert {answer["likeCount"] for answer in gone} == {0}
