"""Lists of posts: filters, order and pages."""

import asyncio
from collections.abc import Callable

import pytest

from tests.people import Client, Person

Unique = Callable[[str], str]


async def post(by: Client, title: str = "A post", **fields: object) -> str:
    return str((await by.done("POST", "/v1/posts", {"title": title, **fields}))["id"])


async def ids(by: Client, path: str) -> list[str]:
    return [each["id"] for each in (await by.done("GET", path))["posts"]]


async def test_every_filter_narrows_the_list(
    as_alice: Client, as_bob: Client, alice: Person, bob: Person, unique: Unique
) -> None:
    tag, word = unique("Tag"), unique("wörd")
    plain = await post(as_alice, "Plain", tags=[tag])
    worded = await post(as_alice, f"A {word} here", tags=[tag])
    others = await post(as_bob, f"Another {word}", summary="Crème brûlée")
    await as_bob.done("PUT", f"/v1/posts/{plain}/like")
    await as_bob.done("PUT", f"/v1/posts/{others}/like")
    ascii_word = word.replace("ö", "O")

    assert await ids(as_bob, f"/v1/posts?author={alice.username.upper()}") == [worded, plain]
    assert await ids(as_bob, f"/v1/posts?authorId={alice.id.upper()}") == [worded, plain]
    assert await ids(as_bob, f"/v1/posts?tag={tag.upper()}") == [worded, plain]
    assert await ids(as_bob, f"/v1/posts?q={ascii_word}") == [others, worded]
    assert await ids(as_bob, f"/v1/posts?q={ascii_word}+creme+BRULEE") == [others]
    assert await ids(as_bob, f"/v1/posts?q={ascii_word}&tag={tag}") == [worded]
    assert await ids(as_bob, f"/v1/posts?likedBy={bob.username}") == [others, plain]
    assert await ids(as_bob, f"/v1/posts?likedBy={bob.username}&author={alice.username}") == [plain]
    assert await ids(as_bob, f"/v1/posts?likedBy={bob.username}&tag={tag}&q=plain") == [plain]
    oldest = f"/v1/posts?tag={tag}&order=POST_ORDER_OLDEST"
    assert await ids(as_bob, oldest) == [plain, worded]


async def test_filter_without_matches_is_an_empty_page(as_alice: Client, bob: Person) -> None:
    await post(as_alice, "A post")
    both = f"author={bob.username}&authorId=018f3f6e-0000-7000-8000-000000000001"

    for query in ("author=unknown-user", "likedBy=unknown-user", "q=🎉", "tag=nosuchtag", both):
        page = await as_alice.done("GET", f"/v1/posts?{query}&includeTotal=true")
        assert page == {"posts": [], "nextPageToken": "", "total": 0}, query


async def test_listed_posts_have_no_body(as_alice: Client, alice: Person) -> None:
    await post(as_alice, "A post", body="x" * 1000)

    page = await as_alice.done("GET", f"/v1/posts?author={alice.username}")

    assert [each["body"] for each in page["posts"]] == [""]


async def test_drafts_are_listed_for_their_author(
    as_alice: Client, as_bob: Client, as_anonymous: Client, alice: Person
) -> None:
    draft = await post(as_alice, "Draft", status="POST_STATUS_DRAFT")
    await post(as_alice, "Published")
    path = "/v1/posts?status=POST_STATUS_DRAFT"

    assert await ids(as_alice, path) == [draft]
    assert await ids(as_bob, path) == []
    assert await ids(as_bob, f"{path}&author={alice.username}") == []
    assert await as_anonymous.refused("GET", path) == (401, "TOKEN_MISSING")


@pytest.mark.parametrize("order", ["POST_ORDER_NEWEST", "POST_ORDER_OLDEST"])
async def test_pages_have_each_post_once_during_writes(
    order: str, as_alice: Client, as_bob: Client, unique: Unique
) -> None:
    tag = unique("tag")
    before = [await post(as_alice, tags=[tag]) for _ in range(12)]
    found, token = [], ""

    while True:
        path = f"/v1/posts?tag={tag}&order={order}&pageSize=5&pageToken={token}"
        page = await as_alice.done("GET", path)
        found += [each["id"] for each in page["posts"]]
        await post(as_bob, tags=[tag])
        token = page["nextPageToken"]
        if not token or len(found) > 30:
            break

    assert len(found) == len(set(found))
    expected = before if order == "POST_ORDER_OLDEST" else before[::-1]
    assert [each for each in found if each in before] == expected


async def test_liked_posts_are_sorted_by_the_time_of_the_like(
    as_alice: Client, as_bob: Client, bob: Person
) -> None:
    posts = [await post(as_alice) for _ in range(7)]
    liked = [posts[index] for index in (3, 0, 6, 1, 5)]
    for each in liked:
        await as_bob.done("PUT", f"/v1/posts/{each}/like")

    found = await as_alice.all(f"/v1/posts?likedBy={bob.username}", "posts", size=2)
    page = await as_alice.done("GET", f"/v1/posts?likedBy={bob.username}&includeTotal=true")

    assert [each["id"] for each in found] == liked[::-1]
    assert page["total"] == 5


async def test_total_of_all_pages_is_included_on_request(as_alice: Client, unique: Unique) -> None:
    tag = unique("tag")
    for _ in range(3):
        await post(as_alice, tags=[tag])

    page = await as_alice.done("GET", f"/v1/posts?tag={tag}&pageSize=1&includeTotal=true")
    plain = await as_alice.done("GET", f"/v1/posts?tag={tag}&pageSize=1")

    assert (len(page["posts"]), page["total"]) == (1, 3)
    assert "total" not in plain


async def test_page_token_is_valid_only_for_its_own_list(as_alice: Client, unique: Unique) -> None:
    tag = unique("tag")
    for _ in range(3):
        await post(as_alice, tags=[tag])
    page = await as_alice.done("GET", f"/v1/posts?tag={tag}&pageSize=1")
    token = page["nextPageToken"]
    middle = "A" if token[20] != "A" else "B"

    for path in (
        f"/v1/posts?tag={tag}x&pageToken={token}",
        f"/v1/posts?pageToken={token}",
        f"/v1/posts?tag={tag}&order=POST_ORDER_OLDEST&pageToken={token}",
        f"/v1/feed?pageToken={token}",
        f"/v1/tags?pageToken={token}",
        f"/v1/posts?tag={tag}&pageToken={token[:20]}{middle}{token[21:]}",
        f"/v1/posts?tag={tag}&pageToken={token[:-4]}",
        f"/v1/posts?tag={tag}&pageToken=é",
        f"/v1/posts?tag={tag}&pageToken=AAAA",
    ):
        assert await as_alice.refused("GET", path) == (422, "PAGE_TOKEN_INVALID"), path
    other_size = await as_alice.done("GET", f"/v1/posts?tag={tag}&pageSize=2&pageToken={token}")
    assert len(other_size["posts"]) == 2


async def test_posts_updated_since_a_time_are_sorted_by_update(
    as_alice: Client, as_bob: Client, as_anonymous: Client, alice: Person, unique: Unique
) -> None:
    tag = unique("tag")
    posts = [await as_alice.done("POST", "/v1/posts", {"title": n, "tags": [tag]}) for n in "abcd"]
    first, second, third, fourth = (each["id"] for each in posts)
    await as_alice.done("PATCH", f"/v1/posts/{second}", {"body": "New"})
    changed = await as_alice.done("PATCH", f"/v1/posts/{first}", {"body": "New"})
    await as_bob.done("PUT", f"/v1/posts/{third}/like")
    since, start = posts[2]["updatedAt"], f"/v1/posts?tag={tag}&updatedSince="
    mine = f"/v1/posts?author={alice.username}&updatedSince={since}&includeTotal=true"

    assert await ids(as_anonymous, start + since) == [third, fourth, second, first]
    assert await ids(as_anonymous, start + changed["updatedAt"]) == [first]
    assert await ids(as_anonymous, f"{start}1970-01-01T00:00:00Z") == [third, fourth, second, first]
    paged = [each["id"] for each in await as_anonymous.all(start + since, "posts", size=1)]
    assert paged == [third, fourth, second, first]
    assert (await as_anonymous.done("GET", mine))["total"] == 4
    liked = f"/v1/posts?author={alice.username}&likedBy={{}}&updatedSince={changed['updatedAt']}"
    await as_bob.done("PUT", f"/v1/posts/{first}/like")
    assert await ids(as_anonymous, liked.format(unique("stranger"))) == []
    await as_alice.done("DELETE", f"/v1/posts/{second}")
    await as_alice.done("POST", f"/v1/posts/{third}:unpublish")
    assert await ids(as_anonymous, start + since) == [fourth, first]
    drafts = f"/v1/posts?status=POST_STATUS_DRAFT&updatedSince={since}"
    assert await ids(as_alice, drafts) == [third]
    assert (await as_anonymous.refused("GET", f"{start}yesterday"))[0] == 422


async def test_filters_by_author_and_liker_accept_an_id(
    as_alice: Client, as_bob: Client, as_anonymous: Client, alice: Person, bob: Person
) -> None:
    id_ = await post(as_alice)
    await as_bob.done("PUT", f"/v1/posts/{id_}/like")

    assert await ids(as_anonymous, f"/v1/posts?author={alice.id.upper()}") == [id_]
    assert await ids(as_anonymous, f"/v1/posts?likedBy={bob.id}") == [id_]
    assert await ids(as_anonymous, f"/v1/posts?likedBy={alice.id}") == []


async def test_invalid_page_token_is_a_violation_of_its_field(as_anonymous: Client) -> None:
    response = await as_anonymous.send("GET", "/v1/posts?pageToken=x")

    assert [each["field"] for each in response.json()["violations"]] == ["pageToken"]


@pytest.mark.parametrize("size", ["-1", "101", "many"])
async def test_page_size_out_of_bounds_is_refused(size: str, as_anonymous: Client) -> None:
    assert (await as_anonymous.refused("GET", f"/v1/posts?pageSize={size}"))[0] == 422


async def test_page_size_is_twenty_by_default_and_at_most_a_hundred(
    as_alice: Client, unique: Unique
) -> None:
    tag = unique("tag")
    await asyncio.gather(*(post(as_alice, str(number), tags=[tag]) for number in range(21)))

    default = await as_alice.done("GET", f"/v1/posts?tag={tag}")
    largest = await as_alice.done("GET", f"/v1/posts?tag={tag}&pageSize=100")

    assert (len(default["posts"]), bool(default["nextPageToken"])) == (20, True)
    assert (len(largest["posts"]), largest["nextPageToken"]) == (21, "")


async def test_paging_continues_after_the_last_post_was_deleted(
    as_alice: Client, unique: Unique
) -> None:
    tag = unique("tag")
    posts = [await post(as_alice, tags=[tag]) for _ in range(6)]
    page = await as_alice.done("GET", f"/v1/posts?tag={tag}&pageSize=2")
    for id_ in (posts[4], posts[3]):
        await as_alice.done("DELETE", f"/v1/posts/{id_}")

    rest = await ids(as_alice, f"/v1/posts?tag={tag}&pageToken={page['nextPageToken']}")

    assert [each["id"] for each in page["posts"]] + rest == [posts[n] for n in (5, 4, 2, 1, 0)]


async def test_search_finds_whole_words_in_title_summary_and_tags(
    as_alice: Client, unique: Unique
) -> None:
    word = unique("w")
    titled, tagged = (
        await post(as_alice, f"On {word}"),
        await post(as_alice, tags=[f"{word} \u2122"]),
    )
    summed = await post(as_alice, summary=f"({word}!)", body="unseen")
    await post(as_alice, f"{word}s", body=word)

    assert await ids(as_alice, f"/v1/posts?q={word.upper()}") == [summed, tagged, titled]
    assert await ids(as_alice, f"/v1/posts?q={word}+TM") == [tagged]
    await as_alice.done("PATCH", f"/v1/posts/{titled}", {"title": "Other"})
    assert await ids(as_alice, f"/v1/posts?q={word}") == [summed, tagged]
