"""Tags: their counters and their list."""

import asyncio
from collections.abc import Callable

import httpx
import pytest

from tests.people import Client, sign_up

Unique = Callable[[str], str]


async def post(by: Client, title: str = "A post", **fields: object) -> str:
    return str((await by.done("POST", "/v1/posts", {"title": title, **fields}))["id"])


async def test_tags_are_sorted_by_their_number_of_published_posts(
    as_alice: Client, unique: Unique
) -> None:
    many, few = unique("Many"), unique("few")
    posts = [await post(as_alice, tags=[many]) for _ in range(3)]
    await post(as_alice, tags=[many.lower(), few])

    async def counts() -> dict[str, int]:
        tags = await as_alice.all("/v1/tags", "tags", size=50)
        assert [each["postCount"] for each in tags] == sorted(
            (each["postCount"] for each in tags), reverse=True
        )
        return {each["name"]: each["postCount"] for each in tags if each["name"] in (many, few)}

    assert await counts() == {many: 4, few: 1}
    await as_alice.done("DELETE", f"/v1/posts/{posts[0]}")
    await as_alice.done("POST", f"/v1/posts/{posts[1]}:unpublish")
    await as_alice.done("PATCH", f"/v1/posts/{posts[2]}", {"tags": [few]})
    assert await counts() == {many: 1, few: 2}


async def test_concurrent_posts_with_one_tag_all_count(
    client: httpx.AsyncClient, as_anonymous: Client, unique: Unique
) -> None:
    tag = unique("hot")
    people = [Client(client, await sign_up(client, unique("hot"))) for _ in range(5)]

    await asyncio.gather(*(post(person, tags=[tag]) for person in people for _ in range(10)))

    page = await as_anonymous.done("GET", f"/v1/posts?tag={tag}&includeTotal=true")
    tags = await as_anonymous.all("/v1/tags", "tags")
    assert page["total"] == 50
    assert [each["postCount"] for each in tags if each["name"] == tag] == [50]


@pytest.mark.parametrize("letter", ["👩", "\ufdfd", "\U0001d518", '"'])
async def test_tag_with_the_longest_key_does_not_end_the_list(
    letter: str, as_alice: Client, as_anonymous: Client, unique: Unique
) -> None:
    tags = [f"{letter * 49}{number}" for number in range(3)]
    await post(as_alice, tags=tags)

    found = [each["name"] for each in await as_anonymous.all("/v1/tags", "tags", size=1)]

    assert set(found) & set(tags)
    assert len(found) == len(set(found))
