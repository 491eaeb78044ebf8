"""Fill the databases of a system; complete databases are kept between runs."""

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final

import asyncpg
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from bench.scale.content import Content, person_id
from shared.data.search_terms import distinct_words

__all__ = ["load"]

_BATCH: Final = 5000
_NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
_COLUMNS: Final = (
    *("id", "username", "email", "password_hash", "display_name", "bio", "image_url", "search"),
    *("follower_count", "following_count", "created_at", "updated_at", "version"),
)
_SESSION_COLUMNS: Final = (
    *("id", "user_id", "device", "family_hash", "secret_hash"),
    *("created_at", "refreshed_at", "expires_at"),
)
Database = AsyncDatabase[dict[str, Any]]


async def load(content: Content, postgres_url: str, mongo_url: str) -> None:
    """Fill both databases. Their tables and indexes must exist."""
    async with AsyncMongoClient[dict[str, Any]](mongo_url) as client:
        database = client.get_default_database()
        if await database["loaded"].find_one({"posts": content.posts}):
            print(f"bench: scale: {content.posts:,} posts exist from an earlier run", flush=True)
            await _open_sessions(content, postgres_url)
            return
        await _load_users(content, postgres_url)
        await _open_sessions(content, postgres_url)
        await _load_posts(content, database)
        await database["loaded"].insert_one({"posts": content.posts})


async def _load_users(content: Content, url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("TRUNCATE users, follows CASCADE")
    follows = list(content.follows())
    following, followers = [0] * content.people, [0] * content.people
    for follower, followed in follows:
        following[follower] += 1
        followers[followed] += 1
    rows = (
        (
            person_id(number),
            name,
            f"{name}@example.com",
            "none",
            *("", "", ""),
            " ".join(distinct_words(name)),
            followers[number],
            following[number],
            *(_NOW, _NOW, 1),
        )
        for number, name in enumerate(content.usernames())
    )
    await connection.copy_records_to_table("users", records=rows, columns=_COLUMNS)
    pairs = ((person_id(one), person_id(other), _NOW) for one, other in follows)
    await connection.copy_records_to_table("follows", records=pairs)
    await connection.execute("ANALYZE")
    await connection.close()
    print(f"bench: scale: {content.people:,} people, {len(follows):,} follows", flush=True)


async def _open_sessions(content: Content, url: str) -> None:
    """Insert one session for each reader, with the id of the user."""
    connection = await asyncpg.connect(url)
    await connection.execute("TRUNCATE sessions")
    until = datetime.now(UTC) + timedelta(days=1)
    rows = [
        (person_id(number), person_id(number), "", b"", b"", _NOW, _NOW, until)
        for number in range(content.readers)
    ]
    await connection.copy_records_to_table("sessions", records=rows, columns=_SESSION_COLUMNS)
    await connection.close()


async def _load_posts(content: Content, database: Database) -> None:
    """Insert likes, then posts, which contain their number; rebuild the indexes after each."""
    for name, documents in (
        ("authors", content.author_documents()),
        ("likes", content.likes()),
        ("posts", content.post_documents()),
    ):
        collection = database[name]
        await collection.delete_many({})
        indexes = await collection.index_information()
        await collection.drop_indexes()
        began, done = time.monotonic(), 0
        for batch in _batches(documents):
            await collection.insert_many(batch, ordered=False)
            done += len(batch)
            if done % 500_000 == 0:
                print(f"bench: scale: {done:,} {name}", flush=True)
        for index, options in indexes.items():
            if index != "_id_":
                unique = options.get("unique", False)
                await collection.create_index(options["key"], name=index, unique=unique)
        seconds = time.monotonic() - began
        print(f"bench: scale: {done:,} {name} and their indexes in {seconds:.0f} s", flush=True)


def _batches(documents: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    remaining = iter(documents)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
