"""Handlers of a single post: fields, validation, versions and access."""

import asyncio
import re
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import pytest
from websockets.asyncio.client import connect

from tests.people import Client, Person, ask
from tests.system import System

Unique = Callable[[str], str]
UNKNOWN_PATH = "/v1/posts/018f3f6e-0000-7000-8000-000000000001"


async def test_created_post_has_the_given_and_the_derived_fields(
    as_alice: Client, alice: Person
) -> None:
    before = datetime.now(UTC)
    post = await as_alice.done(
        "POST",
        "/v1/posts",
        {"title": "Über Cafés", "summary": "Short", "body": "a\n\tb", "tags": ["Köln", "日本"]},
    )

    assert UUID(post["id"]).version == 7
    assert before <= datetime.fromisoformat(post["createdAt"]) <= datetime.now(UTC)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}|\.\d{6})?Z", post["createdAt"])
    assert post["publishedAt"] == post["updatedAt"] == post["createdAt"]
    assert (post["title"], post["summary"], post["body"]) == ("Über Cafés", "Short", "a\n\tb")
    assert (post["tags"], post["status"]) == (["Köln", "日本"], "POST_STATUS_PUBLISHED")
    assert (post["likeCount"], post["commentCount"], post["liked"]) == (0, 0, False)
    assert (post["version"], post["author"]["username"]) == ("1", alice.username)


async def test_patch_that_changes_nothing_leaves_the_version(as_alice: Client) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": "Same", "tags": ["a"]})
    path = f"/v1/posts/{post['id']}"

    same = await as_alice.done("PATCH", path, {"title": "Same", "tags": ["a"]})
    changed = await as_alice.done("PATCH", path, {"tags": []})
    cleared = await as_alice.done("PATCH", path, {"summary": None})

    assert (same["version"], same["updatedAt"]) == ("1", post["updatedAt"])
    assert (changed["version"], changed["tags"]) == ("2", [])
    assert changed["updatedAt"] > post["updatedAt"]
    assert cleared["version"] == "2"


async def test_tags_of_a_post_are_unique_in_any_case(as_alice: Client, unique: Unique) -> None:
    tag = unique("Tag")
    post = await as_alice.done(
        "POST", "/v1/posts", {"title": "T", "tags": [tag, " ß ", tag.upper(), "SS"]}
    )

    assert post["tags"] == [tag, "ß"]
    found = await as_alice.done("GET", f"/v1/posts?tag={tag.lower()}")
    assert [each["id"] for each in found["posts"]] == [post["id"]]


@pytest.mark.parametrize(
    ("body", "field", "rule"),
    [
        ({"title": ""}, "title", "string.min_len"),
        ({"title": " \u00a0 "}, "title", "string.pattern"),
        ({"title": "\u3000\u2003"}, "title", "string.pattern"),
        ({"title": "x" * 201}, "title", "string.max_len"),
        ({"title": "a\u0000b"}, "title", "string.pattern"),
        ({"title": "a\nb"}, "title", "string.pattern"),
        ({"title": "a\u202eb"}, "title", "string.pattern"),
        ({"title": "a", "body": "\u0007"}, "body", "string.pattern"),
        ({"title": "a", "body": "x" * 100_001}, "body", "string.max_len"),
        ({"title": "a", "summary": "x\ny"}, "summary", "string.pattern"),
        ({"title": "a", "tags": [" "]}, "tags[0]", "string.pattern"),
        ({"title": "a", "tags": ["\u3000"]}, "tags[0]", "string.pattern"),
        ({"title": "a", "tags": ["x" * 51]}, "tags[0]", "string.max_len"),
        ({"title": "a", "tags": ["x"] * 21}, "tags", "repeated.max_items"),
    ],
)
async def test_field_that_breaks_a_rule_is_named(
    body: dict[str, object], field: str, rule: str, as_alice: Client
) -> None:
    response = await as_alice.send("POST", "/v1/posts", body)

    violations = [(each["field"], each["rule"]) for each in response.json()["violations"]]
    assert (response.status_code, violations) == (422, [(field, rule)])


async def test_unicode_text_is_stored_unchanged(as_alice: Client) -> None:
    title = "👩‍👩‍👧‍👦 e\u0301 \u200f\u05e9\u05dc\u05d5\u05dd ﷽ \U0001d518 a\u0300\u0301\u0302\u0303"
    body = title + "\r\n\t" + "\U0010ffff\ufeff" + "x" * 90_000

    post = await as_alice.done("POST", "/v1/posts", {"title": title, "body": body})

    read = await as_alice.done("GET", f"/v1/posts/{post['id']}")
    assert (read["title"], read["body"]) == (title, body)


async def test_body_that_is_too_large_is_refused_by_name(as_alice: Client) -> None:
    response = await as_alice.send("POST", "/v1/posts", {"title": "a", "body": "x" * 1_000_000})
    larger = await as_alice.send("POST", "/v1/posts", {"title": "a", "body": "x" * 2_100_000})

    assert (response.status_code, response.json()["violations"][0]["field"]) == (422, "body")
    assert (larger.status_code, larger.json()["reason"]) == (413, "BODY_TOO_LARGE")


async def test_post_is_changed_only_by_its_author(as_alice: Client, as_bob: Client) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": "Mine"})
    path = f"/v1/posts/{post['id']}"

    for verb, suffix, body in (
        ("PATCH", "", {"title": "Yours"}),
        ("DELETE", "", None),
        ("POST", ":publish", None),
        ("POST", ":unpublish", None),
    ):
        assert await as_bob.refused(verb, path + suffix, body) == (403, "NOT_THE_AUTHOR")
    assert (await as_bob.done("GET", path))["version"] == "1"


@pytest.mark.parametrize(
    ("verb", "suffix", "body"),
    [
        ("GET", "", None),
        ("PATCH", "", {"title": "x"}),
        ("DELETE", "", None),
        ("POST", ":publish", None),
        ("PUT", "/like", None),
        ("DELETE", "/like", None),
        ("GET", "/comments", None),
        ("POST", "/comments", {"body": "x"}),
    ],
)
async def test_unknown_post_is_not_found(
    verb: str, suffix: str, body: object, as_alice: Client
) -> None:
    assert await as_alice.refused(verb, UNKNOWN_PATH + suffix, body) == (404, "POST_NOT_FOUND")


async def test_server_controlled_fields_are_refused(as_alice: Client) -> None:
    for field in ("id", "authorId", "likeCount", "version", "expectedVersion", "slug"):
        response = await as_alice.send("POST", "/v1/posts", {"title": "x", field: "1"})
        violations = [(each["field"], each["rule"]) for each in response.json()["violations"]]
        assert (response.status_code, violations) == (422, [(field, "unknown_field")])


async def test_update_of_an_old_version_is_refused(as_alice: Client, as_anonymous: Client) -> None:
    created = await as_alice.send("POST", "/v1/posts", {"title": "One"})
    path, etag = f"/v1/posts/{created.json()['id']}", created.headers["ETag"]

    read = await as_anonymous.send("GET", path)
    known = await as_anonymous.send("GET", path, If_None_Match=read.headers["ETag"])
    changed = await as_alice.send("PATCH", path, {"title": "Two"}, If_Match=etag)
    stale = [
        await as_alice.send("PATCH", path, {"title": "Three"}, If_Match=etag),
        await as_alice.send("DELETE", path, If_Match=etag),
        await as_alice.send("POST", f"{path}:unpublish", If_Match=etag),
    ]
    unknown = await as_anonymous.send("GET", path, If_None_Match=read.headers["ETag"])
    liked = await as_alice.done("PUT", f"{path}/like")
    current = await as_alice.send("DELETE", path, If_Match='"2"')

    assert (known.status_code, known.content) == (304, b"")
    assert (changed.status_code, changed.headers["ETag"][:3]) == (200, '"2-')
    reasons = {(each.status_code, each.json()["reason"]) for each in stale}
    assert reasons == {(412, "VERSION_MISMATCH")}
    assert (unknown.status_code, liked["version"], current.status_code) == (200, "2", 204)


async def test_times_have_microseconds(as_alice: Client) -> None:
    created = [
        (await as_alice.done("POST", "/v1/posts", {"title": "Now"}))["createdAt"] for _ in range(3)
    ]

    assert max(map(len, created)) == len("2026-11-24T14:11:09.966403Z")  # not only milliseconds
    assert created == sorted(created)


async def test_tags_keep_their_order_up_to_the_twentieth(as_alice: Client) -> None:
    tags = [f"tag {number}" for number in range(20, 0, -1)]
    post = await as_alice.done("POST", "/v1/posts", {"title": "Tagged", "tags": tags})
    path = f"/v1/posts/{post['id']}"

    changed = await as_alice.done("PATCH", path, {"tags": tags[::-1]})
    refusal = await as_alice.refused("PATCH", path, {"tags": [*tags, "one more"]})

    assert (post["tags"], changed["tags"]) == (tags, tags[::-1])
    assert refusal == (422, "INVALID_FIELDS")


async def test_one_of_concurrent_changes_to_one_version_succeeds(as_alice: Client) -> None:
    created = await as_alice.send("POST", "/v1/posts", {"title": "Contended"})
    path, etag = f"/v1/posts/{created.json()['id']}", created.headers["ETag"]

    responses = await asyncio.gather(
        *(as_alice.send("PATCH", path, {"body": f"b{n}"}, If_Match=etag) for n in range(8))
    )

    made = [response for response in responses if response.status_code == 200]
    assert sorted(response.status_code for response in responses) == [200] + [412] * 7
    assert (await as_alice.done("GET", path))["body"] == made[0].json()["body"]
    assert made[0].json()["version"] == "2"


async def test_concurrent_changes_without_a_version_all_succeed(as_alice: Client) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": "Contended"})
    path = f"/v1/posts/{post['id']}"

    await asyncio.gather(
        as_alice.done("PATCH", path, {"title": "Other"}),
        as_alice.done("PATCH", path, {"body": "Body"}),
        as_alice.done("PATCH", path, {"summary": "Summary"}),
        as_alice.done("PATCH", path, {"tags": ["tag"]}),
    )

    read = await as_alice.done("GET", path)
    assert (read["title"], read["body"], read["summary"]) == ("Other", "Body", "Summary")
    assert (read["tags"], read["version"]) == (["tag"], "5")


async def test_post_without_a_title_is_a_violation_of_its_field(as_alice: Client) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": "T"})

    response = await as_alice.send("PATCH", f"/v1/posts/{post['id']}", {"title": None})

    assert (response.status_code, response.json()["reason"]) == (422, "TITLE_MISSING")
    [violation] = response.json()["violations"]
    assert (violation["field"], violation["rule"]) == ("title", "required")
    assert violation["message"] == "A post needs a title."


async def test_mask_of_a_field_that_cannot_change_is_a_violation(
    system: System, as_alice: Client, alice: Person
) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": "T"})
    call = {
        "method": "postbus.posts.v1.PostsService.UpdatePost",
        "request": {
            "@type": "type.googleapis.com/postbus.posts.v1.UpdatePostRequest",
            "id": post["id"],
            "updateMask": "slug",
        },
    }
    async with connect(system.websocket_url) as socket:
        await ask(socket, {"id": "1", "authenticate": {"accessToken": alice.token}})
        error = (await ask(socket, {"id": "2", "call": call}))["error"]

    assert error["reason"] == "UPDATE_MASK_INVALID"
    assert [each["field"] for each in error["violations"]] == ["updateMask"]


async def test_tags_are_normalised_as_documented(as_alice: Client) -> None:
    tags = [" spaced ", "e\u0301te\u0301", "\u2122", "TM", "x\u00b2", "x2", "STRASSE", "straße"]

    post = await as_alice.done("POST", "/v1/posts", {"title": "T", "tags": tags})

    assert post["tags"] == ["spaced", "\u00e9t\u00e9", "\u2122", "x\u00b2", "STRASSE"]
