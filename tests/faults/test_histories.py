"""Histories of concurrent users under kills: acknowledged writes survive and have one effect.

POSTBUS_SEED=N repeats a run as far as the machine allows.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.people import Person, sign_up
from tests.system import System

pytestmark = pytest.mark.long

Unique = Callable[[str], str]
PEOPLE = 6
SECONDS = 8.0
WAIT_SECONDS = 20.0


class Actor:
    """A user that sends one request after the other and repeats each until it has a response."""

    def __init__(
        self, client: httpx.AsyncClient, person: Person, generator: random.Random, unique: Unique
    ) -> None:
        self._client = client
        self._generator = generator
        self._unique = unique
        self.person = person
        self.posts: list[str] = []
        self.comments: list[tuple[str, str]] = []
        """Post id and text."""
        self.likes: dict[str, bool] = {}
        self.follows: dict[str, bool] = {}

    async def act(self, post_ids: list[str], others: list[str]) -> None:
        """Send one request and record it."""
        post_id, other = self._generator.choice(post_ids), self._generator.choice(others)
        wanted = self._generator.random() < 0.6
        match self._generator.choice(("post", "like", "like", "comment", "follow")):
            case "post":
                post = await self._done("POST", "/v1/posts", {"title": "Race", "tags": ["race"]})
                self.posts.append(post["id"])
            case "like":
                await self._done("PUT" if wanted else "DELETE", f"/v1/posts/{post_id}/like")
                self.likes[post_id] = wanted
            case "comment":
                text = self._unique("text")
                await self._done("POST", f"/v1/posts/{post_id}/comments", {"body": text})
                self.comments.append((post_id, text))
            case "follow" if other != self.person.username:
                await self._done("PUT" if wanted else "DELETE", f"/v1/users/{other}/follow")
                self.follows[other] = wanted

    async def _done(
        self, verb: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        headers = {
            **self.person.headers,
            "Idempotency-Key": self._unique("key"),
            "Request-Timeout": "2",
        }
        last = time.monotonic() + WAIT_SECONDS
        while True:
            answer = await self._client.request(verb, path, json=body, headers=headers)
            if answer.is_success:
                return dict(answer.json())
            assert answer.status_code in (409, 429, 503, 504), answer.text
            assert time.monotonic() < last, answer.text
            await asyncio.sleep(self._generator.random() * 0.2)


async def kill_repeatedly(system: System, generator: random.Random) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        service = generator.choice(("posts", "users"))
        await asyncio.sleep(0.3 + generator.random())
        await system.kill(service)
        await system.start(service)
        await system.until_ready()


async def test_acknowledged_writes_survive_and_have_one_effect(
    system: System, client: httpx.AsyncClient, unique: Unique
) -> None:
    seed = int(os.environ.get("POSTBUS_SEED") or random.randrange(2**32))  # noqa: S311
    print(f"POSTBUS_SEED={seed}")  # noqa: T201  # pytest shows it if the test fails
    generator = random.Random(seed)  # noqa: S311
    people = [await sign_up(client, unique("actor")) for _ in range(PEOPLE)]
    actors = [Actor(client, person, generator, unique) for person in people]
    created = [
        await client.post("/v1/posts", json={"title": "First"}, headers=person.headers)
        for person in people
    ]
    post_ids = [answer.json()["id"] for answer in created]
    killing = asyncio.create_task(kill_repeatedly(system, generator))

    async def run(actor: Actor) -> None:
        while not killing.done():
            await actor.act(post_ids, [person.username for person in people])

    async with asyncio.timeout(SECONDS + 2 * WAIT_SECONDS):
        await asyncio.gather(killing, *map(run, actors))

    likes = Counter(id_ for actor in actors for id_, liked in actor.likes.items() if liked)
    followers = Counter(name for actor in actors for name, yes in actor.follows.items() if yes)
    texts = Counter(comment for actor in actors for comment in actor.comments)
    for id_ in post_ids:
        post = (await client.get(f"/v1/posts/{id_}")).json()
        page = (await client.get(f"/v1/posts/{id_}/comments?pageSize=100&includeTotal=true")).json()
        theirs = {text: count for (of, text), count in texts.items() if of == id_}
        assert post["likeCount"] == likes[id_]
        assert post["commentCount"] == page["total"] == len(theirs)
        if not page["nextPageToken"]:
            assert Counter(each["body"] for each in page["comments"]) == theirs
    for actor in actors:
        name = actor.person.username
        profile = (await client.get(f"/v1/users/{name}")).json()
        page = (await client.get(f"/v1/posts?author={name}&includeTotal=true")).json()
        assert profile["followerCount"] == followers[name]
        assert profile["followingCount"] == sum(actor.follows.values())
        assert page["total"] == len(actor.posts) + 1
    found = await system.output("posts", "repair")
    assert "_count" not in found
    assert ": tag " not in found
    assert " 0 with wrong counters" in await system.output("users", "repair")
