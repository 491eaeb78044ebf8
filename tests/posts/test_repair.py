"""The repair of derived data in the database of `posts`."""

import asyncio
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest
from pydantic import SecretStr
from pymongo.asynchronous.database import AsyncDatabase
from uuid_utils.compat import uuid7

from postbus.bus.v1 import Reply
from postbus.users.v1 import BatchGetUsersResponse, UsersServiceStub
from posts.likes import LikeRepository
from posts.post_repository import PostRepository
from posts.repair import repair
from shared.bus import ServiceChannel
from shared.bus.memory import MemoryBus
from shared.data.mongo_database import Mongo, open_mongo
from shared.outbox.inbox import Operation
from shared.wire import encode
from tests.buses import opened_bus
from tests.people import Client, Person, eventually
from tests.posts.test_query_plans import a_post
from tests.system import System, free_port

Unique = Callable[[str], str]
Database = AsyncDatabase[dict[str, Any]]


def _about(corrections: list[str], *names: str) -> list[str]:
    """Return the sorted corrections that contain one of the names.

    Events of other tests, which are on their way, cause others.
    """
    return sorted(line for line in corrections[:-1] if any(name in line for name in names))


async def repaired(system: System) -> list[str]:
    """Return the lines of the command `repair`, run in this process: starting one takes longer."""
    urls = system.accounts("posts")
    async with (
        opened_bus(urls["POSTBUS_AMQP_URL"], "posts") as bus,
        open_mongo(SecretStr(urls["POSTBUS_MONGO_URL"])) as mongo,
    ):
        users = UsersServiceStub(ServiceChannel(bus))
        return [f"posts: {line}" async for line in repair(mongo, users)]


async def test_repair_corrects_derived_data_and_reports_each_correction(
    system: System, database: Database, as_alice: Client, as_bob: Client, unique: Unique
) -> None:
    tag, deleted = unique("wrong"), unique("deleted")
    id_ = (await as_alice.done("POST", "/v1/posts", {"title": "Wrong", "tags": [tag]}))["id"]
    await as_bob.done("PUT", f"/v1/posts/{id_}/like")
    await database["posts"].update_one(
        {"_id": id_}, {"$set": {"like_count": 7, "comment_count": -1}}
    )
    await database["tags"].update_one({"_id": tag}, {"$set": {"post_count": 0}})
    await database["likes"].insert_one({"_id": f"{deleted}/x", "post_id": deleted, "user_id": "x"})
    await database["authors"].insert_one({"_id": deleted, "deleted": True, "name_key": ""})
    await database["comments"].insert_one({"_id": deleted, "post_id": id_, "author_id": deleted})

    first = (await system.output("posts", "repair")).splitlines()
    again = await repaired(system)

    assert _about(first, tag, deleted, id_) == sorted(
        [
            f"posts: 1 comments of the deleted user {deleted}",
            f"posts: 1 likes of the deleted post {deleted}",
            f"posts: post {id_}: like_count 1 instead of 7",
            f"posts: post {id_}: comment_count 0 instead of -1",
            f"posts: tag {tag}: 1 posts instead of 0",
        ]
    )
    assert first[-1].endswith(f" posts, {len(first) - 1} corrections")
    assert _about(again, tag, deleted, id_) == []
    assert again[-1].endswith(f" posts, {len(again) - 1} corrections")
    post = await as_alice.done("GET", f"/v1/posts/{id_}")
    assert (post["likeCount"], post["commentCount"]) == (1, 0)


async def test_repair_deletes_the_content_of_deleted_users_and_posts(
    system: System, database: Database, as_alice: Client, unique: Unique
) -> None:
    user, post, other = unique("user"), unique("post"), unique("other")
    kept = (await as_alice.done("POST", "/v1/posts", {"title": "Kept"}))["id"]
    await database["authors"].insert_one({"_id": user, "deleted": True, "name_key": ""})
    await database["posts"].insert_one({"_id": post, "author_id": user, "slugs": [post]})
    await database["likes"].insert_many(
        [
            {"_id": f"{kept}/{user}", "post_id": kept, "user_id": user},
            {"_id": f"{post}/{other}", "post_id": post, "user_id": other},
        ]
    )
    await database["follows"].insert_many(
        [
            {"_id": f"{user}/{other}", "follower_id": user, "followed_id": other},
            {"_id": f"{other}/{user}", "follower_id": other, "followed_id": user},
        ]
    )
    pairs = (
        (user, other, kept),
        (other, user, ""),
        (other, other, post),
        (other, other, ""),
    )
    await database["notifications"].insert_many(
        {"_id": unique("n"), "key": unique("k"), "user_id": to, "actor_id": by, "post_id": about}
        for to, by, about in pairs
    )

    found = await repaired(system)

    assert _about(found, user, post) == sorted(
        [
            f"posts: 1 posts of the deleted user {user}",
            f"posts: 1 likes of the deleted user {user}",
            f"posts: 1 likes of the deleted post {post}",
            f"posts: 1 follows of the deleted user {user}",
            f"posts: 1 follows of the deleted user {user}",
            f"posts: 1 notifications of the deleted user {user}",
            f"posts: 1 notifications of the deleted user {user}",
            f"posts: 1 notifications of the deleted post {post}",
        ]
    )
    left = await database["notifications"].find({"user_id": other}).to_list()
    assert [(each["actor_id"], each["post_id"]) for each in left] == [(other, "")]
    await database["notifications"].delete_many({"user_id": other})


async def test_repair_restores_a_missing_tag_counter(
    system: System, database: Database, as_alice: Client, as_anonymous: Client, unique: Unique
) -> None:
    lost, unused = unique("lost"), unique("unused")
    await as_alice.done("POST", "/v1/posts", {"title": "Tagged", "tags": [lost]})
    await database["tags"].delete_one({"_id": lost})
    await database["tags"].insert_one({"_id": unused, "name": unused, "post_count": 3})

    found = await repaired(system)

    assert _about(found, lost, unused) == [
        f"posts: tag {lost}: 1 posts instead of 0",
        f"posts: tag {unused}: 0 posts instead of 3",
    ]
    tags = await as_anonymous.all("/v1/tags", "tags")
    counts = {each["name"]: each["postCount"] for each in tags}
    assert counts[lost] == 1
    assert unused not in counts


async def test_repair_finds_nothing_after_concurrent_creations_and_deletions(
    system: System,
    database: Database,
    as_alice: Client,
    as_bob: Client,
    alice: Person,
    bob: Person,
) -> None:
    """Content is created while its post is deleted, and undone at once."""
    ids = list[str]()

    async def one_round() -> None:
        created = await as_alice.done("POST", "/v1/posts", {"title": f"@{bob.username}"})
        path = f"/v1/posts/{created['id']}"
        ids.append(created["id"])

        async def comment_and_delete() -> None:
            body = {"body": f"@{alice.username}"}
            response = await as_bob.send("POST", f"{path}/comments", body)
            if response.is_success:
                await as_bob.send("DELETE", f"/v1/comments/{response.json()['id']}")

        async def like_and_unlike() -> None:
            await as_bob.send("PUT", f"{path}/like")
            await as_bob.send("DELETE", f"{path}/like")

        await asyncio.gather(
            *(comment_and_delete() for _ in range(3)),
            like_and_unlike(),
            as_bob.send("PUT", f"{path}/like"),
            as_bob.send("POST", f"{path}/comments", {"body": "Text"}),
            as_alice.send("DELETE", path),
        )

    for _ in range(5):
        await asyncio.gather(*(one_round() for _ in range(4)))

    async def erased() -> bool:
        query = {"post_id": {"$in": ids}}
        names = ("comments", "likes", "notifications")
        return not any([await database[name].count_documents(query) for name in names])

    await eventually(erased)
    found = await repaired(system)
    assert [line for line in found for id_ in ids if id_ in line] == []


async def test_repair_restores_authors_that_events_have_forged(
    system: System, database: Database, alice: Person, bob: Person, as_alice: Client
) -> None:
    renamed, deleted, gone = alice.id, bob.id, str(uuid7())
    forged = {"username": "forged", "version": 2**62, "ahead": [2**62]}
    for user in (renamed, deleted):
        await until(database, {"_id": user, "version": {"$gt": 0}})
    await database["authors"].update_one({"_id": renamed}, {"$set": forged})
    subject = Operation.key_of("posts.postbus.users.v1.UserProfileUpdated", renamed)
    await database["versions"].insert_one({"_id": subject, "version": 2**62})
    await database["authors"].update_one({"_id": deleted}, {"$set": {"deleted": True}})
    await database["authors"].insert_one(
        {"_id": gone, "username": "gone", "name_key": "gone", "version": 1, "deleted": False}
    )

    lines = await repaired(system)
    again = await repaired(system)

    assert _about(lines, renamed, deleted, gone) == sorted(
        [
            f"posts: author {renamed} is {alice.username}, version 1: username, version corrected",
            f"posts: author {deleted} is {bob.username}, version 1: deleted corrected",
            f"posts: author {gone} is deleted: deleted corrected",
        ]
    )
    assert _about(again, renamed, deleted, gone) == []
    stored = await database["authors"].find_one({"_id": renamed})
    assert stored is not None
    assert (stored["username"], stored["version"], stored["ahead"]) == (alice.username, 1, None)
    assert await database["versions"].find_one({"_id": subject}) is None
    await as_alice.done("PATCH", "/v1/me", {"displayName": "Alice again"})
    await until(database, {"_id": renamed, "display_name": "Alice again"})


async def test_repair_does_not_report_a_change_that_no_author_shows(
    system: System, database: Database, alice: Person, as_alice: Client
) -> None:
    """No event is published for a change of the bio."""
    await until(database, {"_id": alice.id, "version": 1})
    changed = await as_alice.done("PATCH", "/v1/me", {"bio": "Gardener"})

    lines = await repaired(system)

    assert int(changed["version"]) == 2
    assert _about(lines, alice.id) == []
    await as_alice.done("PATCH", "/v1/me", {"displayName": "Alice later"})
    await until(database, {"_id": alice.id, "display_name": "Alice later", "version": 3})


async def test_repair_without_the_broker_says_that_authors_are_not_compared(
    system: System, alice: Person, database: Database
) -> None:
    await until(database, {"_id": alice.id, "version": {"$gt": 0}})
    nowhere = f"amqp://posts:x@127.0.0.1:{free_port()}/"

    repair = await system.run(
        "posts", "repair", stdout=asyncio.subprocess.PIPE, POSTBUS_AMQP_URL=nowhere
    )
    output, _ = await asyncio.wait_for(repair.communicate(), 30)

    assert (
        "posts: authors not compared: users answers NOT_CONNECTED; it has to run\n"
        in output.decode()
    )
    assert "corrections" in output.decode().splitlines()[-1]


async def test_repair_does_not_believe_that_all_authors_are_deleted(mongo: Mongo) -> None:
    """The database of `users` may be the wrong one."""
    bus = MemoryBus()

    async def reply(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=encode(BatchGetUsersResponse())))

    await bus.serve("users", ["postbus.users.v1.UsersService.BatchGetUsers"], reply)
    await mongo.database["authors"].insert_many(
        {"_id": str(uuid7()), "username": "a", "name_key": "a", "version": 1, "deleted": False}
        for _ in range(20)
    )
    lines = [line async for line in repair(mongo, UsersServiceStub(ServiceChannel(bus)))]
    deleted = await mongo.database["authors"].count_documents({"deleted": True})

    assert lines[0] == "authors not compared: users knows none of 20"
    assert deleted == 0


async def until(database: Database, author: dict[str, Any]) -> None:
    """Wait until an author is stored."""
    async with asyncio.timeout(10):
        while await database["authors"].find_one(author) is None:  # noqa: ASYNC110  # its database
            await asyncio.sleep(0.05)


async def test_counters_with_differences_that_are_not_folded_are_right(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts, likes, post = PostRepository(mongo), LikeRepository(mongo), a_post(1)
    users = UsersServiceStub(ServiceChannel(MemoryBus()))
    await posts.add(post)
    await likes.add(post.id, "folded")
    await posts.add_to_count(post.id, "like_count", 1)
    with monkeypatch.context() as killed:
        killed.setattr(mongo.counters, "fold", AsyncMock())
        await likes.add(post.id, "not folded")
        await posts.add_to_count(post.id, "like_count", 1)
        tagged = a_post(3)
        await posts.add(tagged)

    right = [line async for line in repair(mongo, users)]
    await mongo.database["posts"].update_one({"_id": post.id}, {"$inc": {"like_count": 5}})
    await mongo.database["tags"].update_one({"_id": "t"}, {"$inc": {"post_count": 5}})
    wrong = [line async for line in repair(mongo, users)]
    await mongo.counters.fold(await mongo.counters.leftovers())
    again = [line async for line in repair(mongo, users)]
    stored, tag = await posts.get(post.id), await mongo.database["tags"].find_one({"_id": "t"})

    assert right == again == ["2 posts, 0 corrections"]
    assert wrong == [
        f"post {post.id}: like_count 2 instead of 7",
        "tag t: 2 posts instead of 7",
        "2 posts, 2 corrections",
    ]
    assert stored is not None
    assert tag is not None
    assert (stored.like_count, tag["post_count"]) == (2, 2)
