"""Upgrades and downgrades of the database of `posts`."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from postbus.bus.v1 import Event
from posts.authors import AuthorCache, AuthorRepository
from posts.migrations import MIGRATIONS
from posts.models import Author, create_indexes
from posts.post_filters import NEWEST, PostFilter
from posts.post_repository import PostRepository
from posts.post_search import PostSearch
from posts.stored_times import from_micros
from shared.data import mongo_migrations
from shared.data.mongo_database import Mongo
from shared.data.mongo_migrations import Migration, MigrationError, migrate
from shared.errors import NotReadyError
from shared.outbox.outbox import EncodedEvent
from shared.wire import encode
from tests.conftest import Place
from tests.mongod import run_mongod
from tests.people import eventually
from tests.system import System
from tests.tokens import TokenMaker

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
    """A separate database with documents of the first version."""
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
    posts, authors = PostRepository(mongo), AuthorRepository(mongo, AuthorCache())
    await create_indexes(mongo)

    post = await posts.get("the-same-title-000000000001")
    assert post is not None
    assert (post.id, post.body, post.version, post.published) == (
        old_post(1)["_id"],
        "Body 1",
        3,
        True,
    )
    assert from_micros(post.created_at) == from_micros(post.published_at or 0) == TIME
    found = await PostSearch(mongo).count(PostFilter(q="TITLE same"), NEWEST)
    assert found == 3
    [author] = await authors.by_names(["ALICE"])
    assert (author.id, author.username, author.version) == (AUTHOR["_id"], "Alice", 1)


async def test_interrupted_migration_continues(database: Database) -> None:
    await migrate(Mongo(database), MIGRATIONS, LAST)
    await database["posts"].insert_one(old_post(7))
    await database["migrations"].delete_many({})

    await migrate(Mongo(database), MIGRATIONS, LAST)

    assert await database["posts"].count_documents({"shape": 2, "slug": {"$exists": True}}) == 4


async def test_downgrade_restores_the_first_version_without_drafts(database: Database) -> None:
    mongo = Mongo(database)
    await migrate(mongo, MIGRATIONS, LAST)
    posts = PostRepository(mongo)
    await create_indexes(mongo)
    draft = await posts.get(old_post(2)["_id"])
    assert draft is not None
    await posts.update(draft, {"status": "draft"})
    await mongo.collection(Author).put(Author.tombstone("deleted"))

    await migrate(mongo, MIGRATIONS, 0)

    found = await database["posts"].find().sort("_id").to_list()
    assert found == [old_post(0), old_post(1)]
    assert await database["authors"].find().to_list() == [AUTHOR]
    assert sorted(await database["posts"].index_information()) == ["_id_"]
    await migrate(mongo, MIGRATIONS, LAST)
    await create_indexes(mongo)
    assert await posts.get("the-same-title-000000000000") is not None


async def test_newest_migration_leaves_what_the_previous_release_reads(
    database: Database,
) -> None:
    """Workers of the previous release find its fields, and the indexes that their queries name."""
    mongo = Mongo(database)
    await migrate(mongo, MIGRATIONS, LAST - 1)
    await create_indexes(mongo)
    comment = {"_id": "1", "post_id": old_post(1)["_id"], "author_id": AUTHOR["_id"], "body": "b"}
    await database["comments"].insert_one(comment)
    before = {name: await documents(database, name) for name in ("posts", "authors", "comments")}
    indexes = await database["posts"].index_information()

    await migrate(mongo, MIGRATIONS, LAST)

    for name, old in before.items():
        new = await documents(database, name)
        assert [each | was for each, was in zip(new, old, strict=True)] == new
    assert indexes.keys() <= (await database["posts"].index_information()).keys()


async def documents(database: Database, collection: str) -> list[dict[str, Any]]:
    return await database[collection].find().sort("_id").to_list()


async def test_migrated_title_of_any_length_has_a_valid_slug(database: Database) -> None:
    mongo = Mongo(database)
    titles = {11: "\ufdfa" * 200, 12: "\U0001f389", 13: "x" * 200}
    await database["posts"].insert_many(
        [old_post(number) | {"title": title} for number, title in titles.items()]
    )

    await migrate(mongo, MIGRATIONS, LAST)

    slugs = [each["slug"] async for each in database["posts"].find().sort("_id")][3:]
    assert [slugs[1], slugs[2]] == ["000000000012", "x" * 80 + "-000000000013"]
    assert max(map(len, slugs)) <= 250  # the limit of GetPost
    assert await PostRepository(mongo).get(slugs[0]) is not None


@pytest.fixture
def old_system(place: Place, tokens: TokenMaker, database: Database, tmp_path: Path) -> System:
    """The services, not started, with databases next to the old one."""
    server = httpx.URL(place.mongo_url)
    settings = {
        "POSTBUS_MONGO_URL": str(server.copy_with(path=f"/{database.name}")),
        "POSTBUS_SIGNING_KEY": tokens.signing_key,
        "POSTBUS_VERIFICATION_KEYS": tokens.key_set,
        "POSTBUS_PAGE_TOKEN_KEY": "of the tests alone",
    }
    return System(place.as_environment() | settings, tmp_path)


async def test_migrate_command_upgrades_downgrades_and_creates_indexes(
    old_system: System, database: Database
) -> None:
    stored = database.client[f"{database.name}_posts"]  # the name of the service is appended
    await stored["posts"].insert_many([old_post(number) for number in range(1200)])
    await stored["authors"].insert_one(AUTHOR)

    await old_system.set_up_accounts()
    await old_system.output("posts", "migrate")
    indexes = await stored["posts"].index_information()
    migrated = await stored["posts"].count_documents({"place": {"$exists": True}})
    await old_system.output("posts", "migrate", "0")

    assert migrated == 1200
    assert indexes["slugs_1"]["unique"]
    assert await stored["posts"].find().sort("_id").to_list() == [old_post(n) for n in range(1200)]
    assert await stored["authors"].find().to_list() == [AUTHOR]
    await old_system.output("posts", "migrate")
    assert await stored["posts"].count_documents({"shape": 2}) == 1200
    unknown = await old_system.run("posts", "migrate", str(LAST + 1))
    assert await unknown.wait() == 1
    await stored.command("dropAllUsersFromDatabase")
    await database.client.drop_database(stored)


async def test_migrate_commands_at_the_same_time_all_succeed(
    old_system: System, database: Database
) -> None:
    stored = database.client[f"{database.name}_posts"]
    await stored["posts"].insert_many([old_post(number) for number in range(300)])
    await old_system.set_up_accounts()

    commands = await asyncio.gather(*(old_system.run("posts", "migrate") for _ in range(3)))

    assert [await command.wait() for command in commands] == [0, 0, 0]
    assert await stored["posts"].count_documents({"shape": 2}) == 300
    assert await stored["migrations"].find().to_list() == [{"_id": "version", "version": LAST}]
    await database.client.drop_database(stored)


async def test_migrate_command_names_the_missing_replica_set(
    old_system: System, tmp_path: Path
) -> None:
    with run_mongod(tmp_path / "mongod", replica_set=False) as server:
        command = await old_system.run("posts", "migrate", POSTBUS_MONGO_URL=server.url())
        assert await command.wait() == 1

    assert old_system.log("posts").startswith("posts: migrate: MongoDB needs a replica set")


async def test_unpublished_events_survive_upgrade_and_downgrade(database: Database) -> None:
    mongo, sent = Mongo(database), list[EncodedEvent]()
    ids = [f"019077f9-8680-7000-8000-{number:012}" for number in range(3)]
    one, *two = (encode(Event(id=id_, type="postbus.test.v1.Noted")) for id_ in ids)
    waiting = {"until": datetime(1970, 1, 1, tzinfo=UTC)}

    async def publish(event: EncodedEvent) -> None:
        sent.append(event)

    await migrate(mongo, MIGRATIONS, 1)
    await database["outbox"].insert_one({"_id": ids[0], "event": one} | waiting)
    await migrate(mongo, MIGRATIONS, LAST)
    entry = {"_id": "operation", "events": two, "event_id": ids[1]}
    await database["inbox"].insert_one(entry | waiting)
    await migrate(mongo, MIGRATIONS, 1)
    stored = await database["outbox"].find().sort("_id").to_list()
    assert stored == [
        {"_id": id_, "event": event} | waiting for id_, event in zip(ids, (one, *two), strict=True)
    ]
    await migrate(mongo, MIGRATIONS, LAST)
    assert await database["inbox"].count_documents({"done_at": {"$exists": True}}) == 1
    assert await database["outbox"].count_documents({}) == 0
    await mongo.forward(publish)

    assert [each.id for each in sent] == ids


async def test_indexes_of_likers_are_created_and_dropped(database: Database) -> None:
    mongo, likers = Mongo(database), "post_id_1_place_-1__id_-1"
    changed = "status_1_updated_at_1__id_1"
    await migrate(mongo, MIGRATIONS, 2)
    await database["likes"].create_index("post_id")

    await migrate(mongo, MIGRATIONS, 3)
    await create_indexes(mongo)
    after = [await database[name].index_information() for name in ("likes", "posts")]
    await migrate(mongo, MIGRATIONS, 2)
    before = [await database[name].index_information() for name in ("likes", "posts")]

    assert (likers in after[0], "post_id_1" in after[0]) == (True, False)
    assert (likers in before[0], "post_id_1" in before[0]) == (False, True)
    for name in (changed, f"author_id_1_{changed}"):
        assert (name in after[1], name in before[1]) == (True, False)


def counting(steps: list[str], number: int) -> list[Migration]:
    """Return migrations that record their steps."""

    def step(name: str) -> Callable[[Database], Awaitable[None]]:
        async def run(_database: Database) -> None:
            steps.append(name)
            await asyncio.sleep(0.05)

        return run

    return [Migration(up=step(f"up {n}"), down=step(f"down {n}")) for n in range(1, number + 1)]


async def test_one_of_many_programs_migrates(database: Database) -> None:
    steps: list[str] = []

    found = await asyncio.gather(*(migrate(Mongo(database), counting(steps, 3)) for _ in range(8)))

    assert (steps, set(found)) == (["up 1", "up 2", "up 3"], {3})
    [stored] = await database["migrations"].find().to_list()
    assert stored == {"_id": "version", "version": 3}


async def test_older_program_does_not_take_the_version_back(database: Database) -> None:
    steps: list[str] = []
    mongo, older = Mongo(database), counting(steps, 2)
    await migrate(mongo, counting([], 3))

    kept = await migrate(mongo, older)
    with pytest.raises(MigrationError, match="version 3, and this program knows versions up to 2"):
        await migrate(mongo, older, 1)

    assert (kept, steps) == (3, [])
    assert await migrate(mongo, counting(steps, 3), 1) == 1
    assert steps == ["down 3", "down 2"]


async def test_migration_of_a_killed_program_is_continued_after_its_lease(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mongo_migrations._LEASE_MS == 10_000
    now = (await database.command("hello"))["localTime"]
    held = {"owner": "killed", "until": now + timedelta(seconds=0.6), "version": 1}
    await database["migrations"].insert_one({"_id": "version", **held})
    steps: list[str] = []

    began = time.monotonic()
    async with asyncio.timeout(5):
        found = await migrate(Mongo(database), counting(steps, 2))

    assert (found, steps) == (2, ["up 2"])
    assert time.monotonic() - began > 0.4


async def test_migration_ends_if_another_program_has_taken_its_lease(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mongo_migrations._RENEW_SECONDS < mongo_migrations._LEASE_MS / 1000 / 2
    monkeypatch.setattr(mongo_migrations, "_RENEW_SECONDS", 0.05)
    ended = False

    async def endless(_database: Database) -> None:
        nonlocal ended
        change = {"$set": {"owner": "another", "version": 7}}
        await database["migrations"].update_one({"_id": "version"}, change)
        try:
            await asyncio.Event().wait()
        finally:
            ended = True

    async with asyncio.timeout(5):
        with pytest.raises(MigrationError, match="taken over"):
            await migrate(Mongo(database), [Migration(up=endless, down=endless)])

    [stored] = await database["migrations"].find().to_list()
    assert (stored["owner"], stored["version"], ended) == ("another", 7, True)


async def test_lease_is_renewed_while_a_migration_runs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo_migrations, "_RENEW_SECONDS", 0.02)

    async def until_renewed(_database: Database) -> None:
        async def end() -> datetime:
            [stored] = await database["migrations"].find().to_list()
            until: datetime = stored["until"]
            return until

        first = await end()

        async def renewed() -> bool:
            return await end() > first

        await eventually(renewed, 5)

    assert await migrate(Mongo(database), [Migration(up=until_renewed, down=until_renewed)]) == 1


async def test_worker_that_is_not_migrated_names_the_command(database: Database) -> None:
    mongo = Mongo(database)
    with pytest.raises(NotReadyError, match="Run the command `migrate`"):
        await mongo.ping(LAST)
    await migrate(mongo, MIGRATIONS, LAST - 1)
    with pytest.raises(NotReadyError, match="Run the command `migrate`"):
        await mongo.ping(LAST)

    await migrate(mongo, MIGRATIONS)

    await mongo.ping(LAST)
    await mongo.ping(LAST - 1)  # a worker of the version before


async def test_differences_are_folded_before_their_collection_is_dropped(
    database: Database,
) -> None:
    mongo = Mongo(database)
    await migrate(mongo, MIGRATIONS)
    id_ = old_post(1)["_id"]
    row = {"key": f"posts/{id_}", "counter": "like_count", "step": 2}
    await database["count_changes"].insert_one(row)

    await migrate(mongo, MIGRATIONS, 3)

    post = await database["posts"].find_one({"_id": id_})
    assert post is not None
    assert post["like_count"] == 2
    assert "count_changes" not in await database.list_collection_names()
