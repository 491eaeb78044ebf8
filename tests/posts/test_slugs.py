"""What a post is called in addresses."""

import asyncio
from collections.abc import Callable

import pytest

from tests.people import Client

Unique = Callable[[str], str]


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


@pytest.mark.parametrize(
    "title", ["Postbus\u2122 \u210d", "\u13a0\uab70", "STRA\u1e9eE", "I \u2764\ufe0f you"]
)
async def test_slug_of_any_script_leads_to_its_post_in_any_case(
    title: str, as_alice: Client, as_nobody: Client, unique: Unique
) -> None:
    post = await as_alice.done("POST", "/v1/posts", {"title": f"{title} {unique('x')}"})

    for slug in (post["slug"], post["slug"].upper(), post["slug"].lower()):
        assert (await as_nobody.done("GET", f"/v1/posts/{slug}"))["id"] == post["id"]


async def test_titles_without_words_have_plain_slugs(as_alice: Client) -> None:
    posts = [await as_alice.done("POST", "/v1/posts", {"title": "\u2764\ufe0f"}) for _ in range(2)]

    assert all(post["slug"].partition("-")[0] == "post" for post in posts)
    assert posts[0]["slug"] != posts[1]["slug"]


async def test_the_ten_slugs_before_lead_to_the_post(
    as_alice: Client, as_nobody: Client, unique: Unique
) -> None:
    titles = [unique(f"t{number}x") for number in range(12)]
    post = await as_alice.done("POST", "/v1/posts", {"title": titles[0]})
    for title in titles[1:]:
        await as_alice.done("PATCH", f"/v1/posts/{post['id']}", {"title": title})

    assert await as_nobody.refused("GET", f"/v1/posts/{titles[0]}") == (404, "POST_NOT_FOUND")
    for title in titles[1:]:
        read = await as_nobody.done("GET", f"/v1/posts/{title}")
        assert (read["id"], read["slug"]) == (post["id"], titles[11])


async def test_slug_is_free_again_when_its_post_is_gone(as_alice: Client, unique: Unique) -> None:
    title = unique("taken")
    first = await as_alice.done("POST", "/v1/posts", {"title": title})
    second = await as_alice.done("POST", "/v1/posts", {"title": title})
    await as_alice.done("DELETE", f"/v1/posts/{first['id']}")

    third = await as_alice.done("POST", "/v1/posts", {"title": title})

    assert (first["slug"], third["slug"]) == (title, title)
    assert second["slug"].startswith(f"{title}-")
