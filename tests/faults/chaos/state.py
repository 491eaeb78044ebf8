"""The state of databases, queues and processes after a run."""

import asyncio
import base64
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import httpx
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from tests.faults.chaos.faults import management, path_of
from tests.faults.chaos.matrix import Place
from tests.faults.chaos.message_rows import is_garbage

__all__ = ["State", "on_the_way", "read_databases", "read_state", "settle"]

SETTLE_SECONDS: Final = 60.0
"""Time after the last fault in which every event must have had its effect."""


@dataclass(slots=True, kw_only=True)
class State:
    """The contents of databases, queues and processes after the run."""

    titles: Counter[str] = field(default_factory=Counter)
    """Titles of posts."""
    post_ids: set[str] = field(default_factory=set)
    comments: Counter[str] = field(default_factory=Counter)
    likes: set[tuple[str, str]] = field(default_factory=set)
    """Person and post."""
    follows: set[tuple[str, str]] = field(default_factory=set)
    """Id of the follower, and name of the followed user."""
    bios: dict[str, str] = field(default_factory=dict)
    unsettled: list[str] = field(default_factory=list)
    """Queues, outboxes and differences of counters that are not empty, with their lengths."""
    dead_letters: list[str] = field(default_factory=list)
    """Queues with dead letters that are not garbage."""
    repairs: list[str] = field(default_factory=list)
    """Corrections by `just repair`."""
    ended: list[str] = field(default_factory=list)
    """Processes that have ended by themselves."""
    memory: dict[str, float] = field(default_factory=dict)
    """MiB by process."""
    logs: dict[str, float] = field(default_factory=dict)
    """MiB by process."""


async def settle(place: Place) -> tuple[float, list[str]]:
    """Wait until nothing is on its way; return the seconds, and what is left after a minute."""
    began = time.monotonic()
    empty, left = 0, [""]
    while empty < 3 and time.monotonic() < began + SETTLE_SECONDS:
        left = await on_the_way(place)
        empty = 0 if left else empty + 1  # the counts of the management API are seconds old
        await asyncio.sleep(1)
    return time.monotonic() - began, left


async def on_the_way(place: Place) -> list[str]:
    """Return the queues, outboxes and differences of counters that are not empty."""
    try:
        async with management(place) as api:
            queues = (await api.get(path_of(place, "queues"))).raise_for_status().json()
    except httpx.HTTPError as error:
        return [f"management API: {error!r}"]
    found = [f"{each['name']}: {each['messages']}" for each in queues if _waits(each)]
    async with AsyncMongoClient[dict[str, Any]](place.mongo_url) as client:
        database = client.get_default_database()
        counts = {
            "outbox of posts": await database["inbox"].count_documents(
                {"until": {"$exists": True}}
            ),
            "differences of counters": await database["count_changes"].count_documents({}),
        }
    connection = await asyncpg.connect(place.postgres_url)
    try:
        counts["outbox of users"] = await connection.fetchval("SELECT count(*) FROM outbox")
    finally:
        await connection.close()
    return found + [f"{name}: {count}" for name, count in counts.items() if count]


def _waits(queue: dict[str, Any]) -> bool:
    stream = "stream" in (queue.get("type"), queue.get("arguments", {}).get("x-queue-type"))
    return bool(queue.get("messages")) and not stream and not queue["name"].endswith(".dead")


async def _dead_letters(place: Place) -> list[str]:
    """Return the queues with dead letters that are not garbage, with one of their reasons."""
    found = []
    async with management(place) as api:
        for each in (await api.get(path_of(place, "queues"))).json():
            if each["name"].endswith(".dead") and each.get("messages"):
                get = {"count": 5000, "ackmode": "ack_requeue_true", "encoding": "base64"}
                letters = (
                    await api.post(path_of(place, "queues", each["name"]) + "/get", json=get)
                ).json()
                true = [
                    letter
                    for letter in letters
                    if not is_garbage(base64.b64decode(letter["payload"]))
                ]
                if true:
                    headers = true[0]["properties"].get("headers", {})
                    found.append(f"{each['name']}: {len(true)}, {headers.get('x-postbus-reason')}")
    return found


async def read_state(place: Place) -> State:
    """Read the data for the checker, and repair derived data."""
    state = State(
        dead_letters=await _dead_letters(place),
        ended=place.system.ended(),
        memory=place.system.resident(),
        logs=place.system.log_sizes(),
    )
    await read_databases(place.mongo_url, place.postgres_url, state)
    lines = (await place.system.output("posts", "repair")).splitlines()[:-1]
    lines += (await place.system.output("users", "repair")).splitlines()[:-1]
    state.repairs += lines
    return state


async def read_databases(mongo_url: str, postgres_url: str, state: State) -> None:
    """Add the writes that the databases of the services hold to `state`."""
    client: AsyncMongoClient[dict[str, Any]]
    async with AsyncMongoClient(mongo_url) as client:
        database: AsyncDatabase[dict[str, Any]] = client.get_default_database()
        async for post in database["posts"].find({}, {"title": 1}):
            state.titles[post["title"]] += 1
            state.post_ids.add(post["_id"])
        async for comment in database["comments"].find({}, {"body": 1}):
            state.comments[comment["body"]] += 1
        async for like in database["likes"].find({}, {"user_id": 1, "post_id": 1}):
            state.likes.add((like["user_id"], like["post_id"]))
    connection = await asyncpg.connect(postgres_url)
    try:
        names = {
            row["id"]: row for row in await connection.fetch("SELECT id, username, bio FROM users")
        }
        state.bios = {id_: row["bio"] for id_, row in names.items()}
        for row in await connection.fetch("SELECT follower_id, followed_id FROM follows"):
            if row["followed_id"] in names:
                state.follows.add((row["follower_id"], names[row["followed_id"]]["username"]))
    finally:
        await connection.close()
