"""Slugs: the names of posts in URLs."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from posts.models import PUBLISHED, Post
from posts.post_repository import PostRepository
from shared.data.mongo_database import Mongo
from tests.people import Client

Unique = Callable[[str], str]
Database = AsyncDatabase[dict[str, Any]]
DRAFT = "POST_STATUS_DRAFT"


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
async def test_slug_has_the_words_of_the_title(
    title: str, slug: str, as_alice: Client, unique: Unique
) -> None:
    name = unique("x")
    post = await as_alice.done("POST", "/v1/posts", {"title": f"{title} {name}"})
    plain = await as_alice.done("POST", "/v1/posts", {"title": title})

    assert post["slug"] == (f"{slug}-{name}" if slug != "post" else name)
    assert plain["slug"].startswith(slug)
    assert (await as_alice.done("GET", f"/v1/posts/{plain['slug']}"))["id"] == plain["id"]


async def test_title_that_looks_like_an_id_does_not_shadow_a_post(as_alice: Client) -> None:
    other = await as_alice.done("POST", "/v1/posts", {"title": "Other"})
    post = await as_alice.done("POST", "/v1/posts", {"title": other["id"]})

    assert (await as_alice.done("GET", f"/v1/posts/{other['id']}"))["id"] == other["id"]
    assert (await as_alice.done("GET", f"/v1/posts/{post['slug']}"))["id"] == post["id"]


async def test_posts_of_one_title_have_distinct_slugs(as_alice: Client, unique: Unique) -> None:
    title = unique("the same ")
    posts = await asyncio.gather(
        *(as_alice.done("POST", "/v1/posts", {"title": title}) for _ in range(20))
    )

    slugs = [post["slug"] for post in posts]
    assert len(set(slugs)) == 20
    assert all(slug.startswith(title.replace(" ", "-")) for slug in slugs)


async def test_new_title_makes_a_new_slug_and_the_old_one_stays_valid(
    as_alice: Client, as_anonymous: Client, unique: Unique
) -> None:
    first, second = unique("first"), unique("second")
    post = await as_alice.done("POST", "/v1/posts", {"title": first})

    changed = await as_alice.done("PATCH", f"/v1/posts/{post['id']}", {"title": second})
    back = await as_alice.done("PATCH", f"/v1/posts/{post['id']}", {"title": first})

    assert (post["slug"], changed["slug"], back["slug"]) == (first, second, first)
    for slug in (first, second):
        assert (await as_anonymous.done("GET", f"/v1/posts/{slug}"))["id"] == post["id"]


@pytest.mark.parametrize(
    "title", ["Postbus\u2122 \u210d", "\u13a0\uab70", "STRA\u1e9eE", "I \u2764\ufe0f you"]
)
async def test_slug_of_any_script_is_found_in_any_case(
    title: str, as_alice: Client, as_anonymous: Client, unique: Unique
) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": f"{title} {unique('x')}"})

    for slug in (post["slug"], post["slug"].upper(), post["slug"].lower()):
        assert (await as_anonymous.done("GET", f"/v1/posts/{slug}"))["id"] == post["id"]


async def test_titles_without_words_have_plain_slugs(as_alice: Client) -> None:
    posts = [await as_alice.done("POST", "/v1/posts", {"title": "\u2764\ufe0f"}) for _ in range(2)]

    assert all(post["slug"].partition("-")[0] == "post" for post in posts)
    assert posts[0]["slug"] != posts[1]["slug"]


async def test_every_former_slug_stays_with_its_post(
    as_alice: Client, as_bob: Client, unique: Unique
) -> None:
    titles = [unique(f"t{number}x") for number in range(13)]
    post = await as_alice.done("POST", "/v1/posts", {"title": titles[0]})
    for title in titles[1:]:
        await as_alice.done("PATCH", f"/v1/posts/{post['id']}", {"title": title})

    other = await as_bob.done("POST", "/v1/posts", {"title": titles[0]})

    assert other["slug"].startswith(f"{titles[0]}-")
    for title in titles:
        read = await as_bob.done("GET", f"/v1/posts/{title}")
        assert (read["id"], read["slug"]) == (post["id"], titles[12])


@pytest.mark.parametrize("first", [True, False])
async def test_slug_stays_while_the_words_of_the_title_stay(
    first: bool, as_alice: Client, unique: Unique
) -> None:
    title = unique("Read me ")
    slugs = [(await as_alice.done("POST", "/v1/posts", {"title": title}))["slug"] for _ in range(2)]
    slug = slugs[0 if first else 1]

    async def retitled(text: str) -> str:
        changed = await as_alice.done("PATCH", f"/v1/posts/{slug}", {"title": text})
        return str(changed["slug"])

    for text in (
        title.upper(),
        f"{title}!",
        f"\u201c{title}\u201d",
        title.replace("e", "é"),
        title,
    ):
        assert await retitled(text) == slug
    assert await retitled(f"{title} now") != slug
    assert await retitled(title) == slug
    for verb in ("unpublish", "publish"):
        assert (await as_alice.done("POST", f"/v1/posts/{slug}:{verb}"))["slug"] == slug


async def test_date_at_the_end_of_a_title_is_a_part_of_its_slug(
    as_alice: Client, unique: Unique
) -> None:
    title = unique("Release ")
    post = await as_alice.done("POST", "/v1/posts", {"title": f"{title} 20260101"})

    changed = await as_alice.done("PATCH", f"/v1/posts/{post['id']}", {"title": title})

    assert changed["slug"] == title.lower().replace(" ", "-")


async def test_draft_keeps_one_slug_until_it_is_published(
    as_alice: Client, database: Database, unique: Unique
) -> None:
    first, last = unique("first"), unique("last")
    draft = await as_alice.done("POST", "/v1/posts", {"title": first, "status": DRAFT})
    path = f"/v1/posts/{draft['id']}"
    for title in ("One", "Two", last):
        assert (await as_alice.done("PATCH", path, {"title": title}))["slug"] == draft["slug"]

    published = await as_alice.done("POST", f"{path}:publish")
    await as_alice.done("POST", f"{path}:unpublish")
    edited = await as_alice.done("PATCH", path, {"title": first})
    again = await as_alice.done("POST", f"{path}:publish")

    assert (published["slug"], edited["slug"]) == (last, last)
    assert again["slug"] == draft["slug"]
    stored = await database["posts"].find_one({"_id": draft["id"]})
    assert stored is not None
    assert sorted(stored["slugs"]) == sorted([last, draft["slug"]])


async def test_slug_no_longer_changes_after_a_hundred(mongo: Mongo) -> None:
    posts, post = PostRepository(mongo), a_published_post()
    await posts.add(post)
    for number in range(103):
        await posts.update(post, {"title": f"Title {number}"})
    last = (post.title, post.slug, len(post.slugs))
    await posts.update(post, {"title": "Title 5"})

    assert last == ("Title 102", "title-99", 101)
    assert (post.slug, len(post.slugs)) == ("title-5", 101)


def a_published_post() -> Post:
    return Post(
        id="018f3f6e-0000-7000-8000-000000000001",
        author_id="a",
        slug="",
        slugs=[],
        title="First",
        tags=[],
        tag_keys=[],
        words=[],
        status=PUBLISHED,
        place="1",
        created_at=1,
        updated_at=1,
        published_at=1,
    )


async def test_every_route_of_a_post_takes_its_slug(
    as_alice: Client, as_bob: Client, unique: Unique
) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": unique("É ")})
    path, id_ = f"/v1/posts/{post['slug'].upper()}", post["id"]

    comment = await as_bob.done("POST", f"{path}/comments", {"body": "By slug"})
    responses = [
        await as_bob.done("PUT", f"{path}/like"),
        await as_bob.done("DELETE", f"{path}/like"),
        await as_alice.done("PATCH", path, {"body": "New"}),
        await as_alice.done("POST", f"{path}:unpublish"),
        await as_alice.done("POST", f"{path}:publish"),
        await as_alice.done("GET", path),
    ]

    assert {response["id"] for response in responses} == {id_} == {comment["postId"]}
    listed = await as_bob.done("GET", f"{path}/comments")
    assert [each["id"] for each in listed["comments"]] == [comment["id"]]
    assert (await as_bob.done("GET", f"{path}/likes"))["likers"] == []
    await as_alice.done("DELETE", path)
    assert await as_alice.refused("GET", f"/v1/posts/{id_}") == (404, "POST_NOT_FOUND")


@pytest.mark.parametrize(
    ("verb", "end"),
    [
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", ":publish"),
        ("POST", ":unpublish"),
        ("PUT", "/like"),
        ("DELETE", "/like"),
        ("GET", "/likes"),
        ("GET", "/comments"),
        ("POST", "/comments"),
    ],
)
async def test_every_route_of_a_post_validates_its_name_alike(
    verb: str, end: str, as_alice: Client
) -> None:
    body = {"body": "Text"} if verb in ("POST", "PATCH") and ":" not in end else None

    unknown = await as_alice.refused(verb, f"/v1/posts/no-such-post{end}", body)
    longest = await as_alice.refused(verb, f"/v1/posts/{'x' * 250}{end}", body)
    longer = await as_alice.send(verb, f"/v1/posts/{'x' * 251}{end}", body)

    assert unknown == longest == (404, "POST_NOT_FOUND")
    [violation] = longer.json()["violations"]
    assert (longer.status_code, violation["rule"]) == (422, "string.max_len")


async def test_update_by_slug_is_conditional_and_idempotent(
    as_alice: Client, unique: Unique
) -> None:
    created = await as_alice.send("POST", "/v1/posts", {"title": unique("once")})
    path, etag = f"/v1/posts/{created.json()['slug']}", created.headers["ETag"]
    headers = {"If_Match": etag, "Idempotency_Key": unique("key")}

    first = await as_alice.send("PATCH", path, {"body": "1"}, **headers)
    again = await as_alice.send("PATCH", path, {"body": "1"}, **headers)
    stale = await as_alice.send("PATCH", path, {"body": "2"}, If_Match=etag)

    assert first.json()["version"] == again.json()["version"] == "2"
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (stale.status_code, stale.json()["reason"]) == (412, "VERSION_MISMATCH")


async def test_slug_of_a_deleted_post_is_available_again(as_alice: Client, unique: Unique) -> None:
    title = unique("taken")
    first = await as_alice.done("POST", "/v1/posts", {"title": title})
    second = await as_alice.done("POST", "/v1/posts", {"title": title})
    await as_alice.done("DELETE", f"/v1/posts/{first['id']}")

    third = await as_alice.done("POST", "/v1/posts", {"title": title})

    assert (first["slug"], third["slug"]) == (title, title)
    assert second["slug"].startswith(f"{title}-")
