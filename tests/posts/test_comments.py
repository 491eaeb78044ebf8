"""Comments: lists, counters, versions and access."""

import asyncio
from collections.abc import Callable

import pytest

from tests.people import Client, Person

Unique = Callable[[str], str]
KIND = "NOTIFICATION_KIND_"


async def post(by: Client, **fields: object) -> str:
    created = await by.done("POST", "/v1/posts", {"title": "A post", **fields})
    return f"/v1/posts/{created['id']}"


async def comment(by: Client, path: str, body: str = "Text") -> str:
    return str((await by.done("POST", f"{path}/comments", {"body": body}))["id"])


async def test_comments_are_listed_latest_first_and_counted(
    as_alice: Client, as_bob: Client, as_anonymous: Client, bob: Person
) -> None:
    path = await post(as_alice)
    ids = [await comment(as_bob, path, f"n{number}\n👍") for number in range(5)]

    found = await as_anonymous.all(f"{path}/comments", "comments", size=2)
    page = await as_anonymous.done("GET", f"{path}/comments?includeTotal=true")

    assert [each["id"] for each in found] == ids[::-1]
    assert [each["body"] for each in found] == [f"n{number}\n👍" for number in (4, 3, 2, 1, 0)]
    assert {each["author"]["username"] for each in found} == {bob.username}
    assert page["total"] == (await as_anonymous.done("GET", path))["commentCount"] == 5


async def test_comment_is_changed_by_its_author_and_deleted_by_either_author(
    as_alice: Client, as_bob: Client, as_anonymous: Client
) -> None:
    path = await post(as_alice)
    first, second = await comment(as_bob, path), await comment(as_bob, path)

    assert await as_alice.refused("PATCH", f"/v1/comments/{first}", {"body": "x"}) == (
        403,
        "NOT_THE_AUTHOR",
    )
    changed = await as_bob.send("PATCH", f"/v1/comments/{first}", {"body": "New"}, If_Match='"1"')
    stale = await as_bob.send("PATCH", f"/v1/comments/{first}", {"body": "x"}, If_Match='"1"')
    assert (changed.json()["body"], changed.json()["version"]) == ("New", "2")
    assert (stale.status_code, stale.json()["reason"]) == (412, "VERSION_MISMATCH")
    own = await comment(as_alice, path)
    assert await as_bob.refused("DELETE", f"/v1/comments/{own}") == (403, "NOT_THE_AUTHOR")
    await as_bob.done("DELETE", f"/v1/comments/{first}")
    await as_alice.done("DELETE", f"/v1/comments/{second}")
    assert await as_bob.refused("DELETE", f"/v1/comments/{first}") == (404, "COMMENT_NOT_FOUND")
    assert (await as_anonymous.done("GET", path))["commentCount"] == 1


async def test_comment_has_an_etag_for_conditional_requests(
    as_alice: Client, as_bob: Client, as_anonymous: Client, bob: Person
) -> None:
    path = await post(as_alice)
    id_ = await comment(as_bob, path)
    read = await as_anonymous.send("GET", f"/v1/comments/{id_.upper()}")
    [listed] = (await as_anonymous.done("GET", f"{path}/comments"))["comments"]

    assert read.json() == listed
    assert (listed["id"], listed["author"]["username"]) == (id_, bob.username)
    own = f"/v1/comments/{id_}"
    known = await as_anonymous.send("GET", own, If_None_Match=read.headers["ETag"])
    assert known.status_code == 304
    for tag in (read.headers["ETag"], '"2"'):
        changed = await as_bob.send("PATCH", own, {"body": tag}, If_Match=tag)
        assert changed.status_code == 200
    assert (await as_anonymous.done("GET", own))["version"] == "3"


async def test_comment_is_readable_as_long_as_its_post(
    as_alice: Client, as_bob: Client, as_anonymous: Client
) -> None:
    path = await post(as_alice)
    id_ = await comment(as_bob, path)
    unknown = "/v1/comments/018f3f6e-0000-7000-8000-000000000000"

    await as_alice.done("POST", f"{path}:unpublish")

    assert (await as_alice.done("GET", f"/v1/comments/{id_}"))["id"] == id_
    assert await as_bob.refused("GET", f"/v1/comments/{id_}") == (404, "POST_NOT_FOUND")
    assert await as_anonymous.refused("GET", unknown) == (404, "COMMENT_NOT_FOUND")
    assert (await as_anonymous.refused("GET", "/v1/comments/x"))[0] == 422
    await as_alice.done("POST", f"{path}:publish")
    await as_bob.done("DELETE", f"/v1/comments/{id_}")
    assert await as_anonymous.refused("GET", f"/v1/comments/{id_}") == (404, "COMMENT_NOT_FOUND")


@pytest.mark.parametrize(
    ("body", "rule"),
    [("", "string.min_len"), ("x" * 10_001, "string.max_len"), ("a\u0000", "string.pattern")],
)
async def test_comment_that_breaks_a_rule_is_refused(
    body: str, rule: str, as_alice: Client
) -> None:
    path = await post(as_alice)

    response = await as_alice.send("POST", f"{path}/comments", {"body": body})

    assert [each["rule"] for each in response.json()["violations"]] == [rule]


async def test_comment_of_ten_thousand_characters_is_stored_unchanged(
    as_alice: Client,
) -> None:
    path = await post(as_alice)
    body = "\U0001f469\u200d\U0001f467 e\u0301\r\n\t\u05e9\ufeff".ljust(10_000, "日")

    await comment(as_alice, path, body)

    assert [each["body"] for each in await as_alice.all(f"{path}/comments", "comments")] == [body]


async def test_update_with_the_same_text_keeps_the_version(as_alice: Client) -> None:
    id_ = await comment(as_alice, await post(as_alice), "Same")

    same = await as_alice.done("PATCH", f"/v1/comments/{id_}", {"body": "Same"})
    other = await as_alice.done("PATCH", f"/v1/comments/{id_}", {"body": "Other"})

    assert (same["version"], same["updatedAt"]) == ("1", same["createdAt"])
    assert (other["version"], other["updatedAt"] > other["createdAt"]) == ("2", True)


async def test_concurrent_comments_and_deletions_are_counted(
    as_alice: Client, as_bob: Client
) -> None:
    path = await post(as_alice)

    ids = await asyncio.gather(*(comment(by, path) for by in (as_alice, as_bob) * 10))
    await asyncio.gather(*(as_alice.done("DELETE", f"/v1/comments/{id_}") for id_ in ids[:6]))

    assert (await as_bob.done("GET", path))["commentCount"] == 14
    left = await as_bob.all(f"{path}/comments", "comments", size=4)
    assert sorted(each["id"] for each in left) == sorted(ids[6:])


async def test_unknown_comment_is_not_found(as_alice: Client, as_anonymous: Client) -> None:
    path = "/v1/comments/018f3f6e-0000-7000-8000-000000000001"
    own = await post(as_alice)

    assert await as_alice.refused("PATCH", path, {"body": "x"}) == (404, "COMMENT_NOT_FOUND")
    assert await as_alice.refused("DELETE", path) == (404, "COMMENT_NOT_FOUND")
    for verb, place in (("POST", f"{own}/comments"), ("PATCH", path), ("DELETE", path)):
        body = None if verb == "DELETE" else {"body": "x"}
        assert await as_anonymous.refused(verb, place, body) == (401, "TOKEN_MISSING")
