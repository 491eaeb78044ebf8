"""One post: what it is called, who sees it, who changes it."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import pytest

from tests.people import Client, Person

Unique = Callable[[str], str]
NOWHERE = "/v1/posts/018f3f6e-0000-7000-8000-000000000001"


async def test_post_has_what_was_written_and_what_it_gets(as_alice: Client, alice: Person) -> None:
    before = datetime.now(UTC)
    post = await as_alice.done(
        "POST",
        "/v1/posts",
        {"title": "Über Cafés", "summary": "Short", "body": "a\n\tb", "tags": ["Köln", "日本"]},
    )

    assert UUID(post["id"]).version == 7
    assert before <= datetime.fromisoformat(post["createdAt"]) <= datetime.now(UTC)
    assert len(post["createdAt"]) == len("2026-11-24T14:11:09.966403Z")
    assert post["publishedAt"] == post["updatedAt"] == post["createdAt"]
    assert (post["title"], post["summary"], post["body"]) == ("Über Cafés", "Short", "a\n\tb")
    assert (post["tags"], post["status"]) == (["Köln", "日本"], "POST_STATUS_PUBLISHED")
    assert (post["likeCount"], post["commentCount"], post["liked"]) == (0, 0, False)
    assert (post["version"], post["author"]["username"]) == ("1", alice.username)


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("Crème brûlée, twice!", "creme-brulee-twice"),
        ("Привет, мир", "привет-мир"),
        ("日本語 の 題", "日本語-の-題"),
        ("C++ & C#", "c-c"),
        ("The more the better", "the-more-the-better"),
        ("हिन्दी で 가나다", "हिन्दी-で-가나다"),
        ("🎉🎉", "post"),
    ],
)
async def test_slug_is_made_of_the_title(
    title: str, slug: str, as_alice: Client, unique: Unique
) -> None:
    name = unique("x")
    post = await as_alice.done("POST", "/v1/posts", {"title": f"{title} {name}"})
    plain = await as_alice.done("POST", "/v1/posts", {"title": title})

    assert post["slug"] == (f"{slug}-{name}" if slug != "post" else name)
    assert plain["slug"].startswith(slug)
    assert (await as_alice.done("GET", f"/v1/posts/{plain['slug']}"))["id"] == plain["id"]


async def test_title_that_looks_like_an_id_leads_to_its_own_post(as_alice: Client) -> None:
    other = await as_alice.done("POST", "/v1/posts", {"title": "Other"})
    post = await as_alice.done("POST", "/v1/posts", {"title": other["id"]})

    assert (await as_alice.done("GET", f"/v1/posts/{other['id']}"))["id"] == other["id"]
    assert (await as_alice.done("GET", f"/v1/posts/{post['slug']}"))["id"] == post["id"]


async def test_posts_of_one_title_have_slugs_of_their_own(as_alice: Client, unique: Unique) -> None:
    title = unique("the same ")
    posts = await asyncio.gather(
        *(as_alice.done("POST", "/v1/posts", {"title": title}) for _ in range(20))
    )

    slugs = [post["slug"] for post in posts]
    assert len(set(slugs)) == 20
    assert all(slug.startswith(title.replace(" ", "-")) for slug in slugs)


async def test_new_title_makes_a_new_slug_and_the_old_one_still_leads_there(
    as_alice: Client, as_nobody: Client, unique: Unique
) -> None:
    first, second = unique("first"), unique("second")
    post = await as_alice.done("POST", "/v1/posts", {"title": first})

    changed = await as_alice.done("PATCH", f"/v1/posts/{post['id']}", {"title": second})
    back = await as_alice.done("PATCH", f"/v1/posts/{post['id']}", {"title": first})

    assert (post["slug"], changed["slug"], back["slug"]) == (first, second, first)
    for slug in (first, second):
        assert (await as_nobody.done("GET", f"/v1/posts/{slug}"))["id"] == post["id"]


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


async def test_tags_alike_but_for_case_are_one(as_alice: Client, unique: Unique) -> None:
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
        ({"title": "x" * 201}, "title", "string.max_len"),
        ({"title": "a\u0000b"}, "title", "string.pattern"),
        ({"title": "a\nb"}, "title", "string.pattern"),
        ({"title": "a\u202eb"}, "title", "string.pattern"),
        ({"title": "a", "body": "\u0007"}, "body", "string.pattern"),
        ({"title": "a", "body": "x" * 100_001}, "body", "string.max_len"),
        ({"title": "a", "summary": "x\ny"}, "summary", "string.pattern"),
        ({"title": "a", "tags": [" "]}, "tags[0]", "string.pattern"),
        ({"title": "a", "tags": ["x" * 51]}, "tags[0]", "string.max_len"),
        ({"title": "a", "tags": ["x"] * 21}, "tags", "repeated.max_items"),
    ],
)
async def test_field_that_breaks_a_rule_is_named(
    body: dict[str, object], field: str, rule: str, as_alice: Client
) -> None:
    answer = await as_alice.send("POST", "/v1/posts", body)

    violations = [(each["field"], each["rule"]) for each in answer.json()["violations"]]
    assert (answer.status_code, violations) == (422, [(field, rule)])


async def test_text_of_every_kind_comes_back_as_it_was_written(as_alice: Client) -> None:
    title = "👩‍👩‍👧‍👦 e\u0301 \u200f\u05e9\u05dc\u05d5\u05dd ﷽ \U0001d518 a\u0300\u0301\u0302\u0303"
    body = title + "\r\n\t" + "\U0010ffff\ufeff" + "x" * 90_000

    post = await as_alice.done("POST", "/v1/posts", {"title": title, "body": body})

    read = await as_alice.done("GET", f"/v1/posts/{post['id']}")
    assert (read["title"], read["body"]) == (title, body)


async def test_body_of_a_megabyte_is_refused_by_name(as_alice: Client) -> None:
    answer = await as_alice.send("POST", "/v1/posts", {"title": "a", "body": "x" * 1_000_000})
    larger = await as_alice.send("POST", "/v1/posts", {"title": "a", "body": "x" * 1_100_000})

    assert (answer.status_code, answer.json()["violations"][0]["field"]) == (422, "body")
    assert (larger.status_code, larger.json()["reason"]) == (413, "BODY_TOO_LARGE")


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


async def test_post_is_its_authors_to_change(as_alice: Client, as_bob: Client) -> None:
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
async def test_post_that_is_not_there_is_not_found(
    verb: str, suffix: str, body: object, as_alice: Client
) -> None:
    assert await as_alice.refused(verb, NOWHERE + suffix, body) == (404, "POST_NOT_FOUND")


async def test_nobody_writes_what_is_not_theirs_to_write(as_alice: Client) -> None:
    for field in ("id", "authorId", "likeCount", "version", "expectedVersion", "slug"):
        answer = await as_alice.send("POST", "/v1/posts", {"title": "x", field: "1"})
        assert answer.status_code == 422, field


async def test_change_of_another_version_is_refused(as_alice: Client, as_nobody: Client) -> None:
    created = await as_alice.send("POST", "/v1/posts", {"title": "One"})
    path, etag = f"/v1/posts/{created.json()['id']}", created.headers["ETag"]

    read = await as_nobody.send("GET", path)
    known = await as_nobody.send("GET", path, If_None_Match=read.headers["ETag"])
    changed = await as_alice.send("PATCH", path, {"title": "Two"}, If_Match=etag)
    stale = [
        await as_alice.send("PATCH", path, {"title": "Three"}, If_Match=etag),
        await as_alice.send("DELETE", path, If_Match=etag),
        await as_alice.send("POST", f"{path}:unpublish", If_Match=etag),
    ]
    unknown = await as_nobody.send("GET", path, If_None_Match=read.headers["ETag"])
    liked = await as_alice.done("PUT", f"{path}/like")
    current = await as_alice.send("DELETE", path, If_Match='"2"')

    assert (known.status_code, known.content) == (304, b"")
    assert (changed.status_code, changed.headers["ETag"][:3]) == (200, '"2-')
    reasons = {(each.status_code, each.json()["reason"]) for each in stale}
    assert reasons == {(412, "VERSION_MISMATCH")}
    assert (unknown.status_code, liked["version"], current.status_code) == (200, "2", 204)
