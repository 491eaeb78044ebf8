"""The database of `posts` from version to version, and back."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from posts.authors import AuthorRepository
from posts.migrations import MIGRATIONS
from posts.repository import PostFilter, PostRepository
from posts.times import from_micros
from shared.mongo import Mongo
from shared.mongo_migrations import migrate

Unique = Callable[[str], str]
Database = AsyncDatabase[dict[str, Any]]
LAST = len(MIGRATIONS)
TIME = datetime(2026, 11, 1, 12, 30, 15, 123000, tzinfo=UTC)
AUTHOR = {"_id": "018f3f6e-0000-7000-8000-00000000000a", "username": "Alice"}


def old_post(number: int) -> dict[str, Any]:
    return {
        "_id": f"018f3f6e-0000-7000-8000-{number:012}",
        "author_id": AUTHOR["_id"],
        "title": "The same tïtle",
        "body": f"Body {number}",
        "created_at": TIME,
        "updated_at": TIME,
        "version": 3,
    }


@pytest.fixture
async def database(mongo_url: str, unique: Unique) -> AsyncIterator[Database]:
    """A database of its own, as the first version had it."""
    url = httpx.URL(mongo_url)
    own = str(url.copy_with(path=unique(f"{url.path}_")))
    async with AsyncMongoClient[dict[str, Any]](own, tz_aware=True) as client:
        opened = client.get_default_database()
        await opened["posts"].insert_many([old_post(number) for number in range(3)])
        await opened["authors"].insert_one(AUTHOR)
        yield opened
        await client.drop_database(opened)


async def test_posts_of_the_first_version_are_read_as_published(database: Database) -> None:
    mongo = Mongo(database)
    await migrate(mongo, MIGRATIONS, LAST)
    posts, authors = PostRepository(mongo), AuthorRepository(mongo)
    await posts.create_indexes()

    post = await posts.get("the-same-title-000000000001")
    assert post is not None
    assert (post.id, post.body, post.version, post.published) == (
        old_post(1)["_id"],
        "Body 1",
        3,
        True,
    )
    assert from_micros(post.created_at) == from_micros(post.published_at or 0) == TIME
    assert await posts.count(PostFilter(q="TITLE same")) == 3
    [author] = await authors.by_names(["ALICE"])
    assert (author.id, author.username, author.version) == (AUTHOR["_id"], "Alice", 1)


async def test_interrupted_migration_goes_on_where_it_was(database: Database) -> None:
    await migrate(Mongo(database), MIGRATIONS, LAST)
    await database["posts"].insert_one(old_post(7))
    await database["migrations"].delete_many({})

    await migrate(Mongo(database), MIGRATIONS, LAST)

    assert await database["posts"].count_documents({"shape": 2, "slug": {"$exists": True}}) == 4


async def test_way_back_restores_the_first_version_but_for_drafts(database: Database) -> None:
    mongo = Mongo(database)
    await migrate(mongo, MIGRATIONS, LAST)
    posts = PostRepository(mongo)
    await posts.create_indexes()
    draft = await posts.get(old_post(2)["_id"])
    assert draft is not None
    await posts.change(draft, {"status": "draft"})
    await AuthorRepository(mongo).bury("gone")

    await migrate(mongo, MIGRATIONS, 0)

    found = await database["posts"].find().sort("_id").to_list()
    assert found == [old_post(0), old_post(1)]
    assert await database["authors"].find().to_list() == [AUTHOR]
    assert sorted(await database["posts"].index_information()) == ["_id_"]
    await migrate(mongo, MIGRATIONS, LAST)
    await posts.create_indexes()
    assert await posts.get("the-same-title-000000000000") is not None
