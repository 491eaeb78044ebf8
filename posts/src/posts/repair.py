"""The repair of what other data says: counters, and what has lost its post or its user.

The system may run meanwhile: what hangs on nothing is of no use to anyone, and a counter is set
right in a transaction that counts once more.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession

from posts.models import PUBLISHED
from shared.data.mongo_database import Mongo
from shared.data.mongo_migrations import Database

__all__ = ["repair"]

_BATCH: Final = 500
_COUNTED: Final = {"like_count": "likes", "comment_count": "comments"}
_CHILDREN: Final = (
    ("likes", "post_id", "posts"),
    ("comments", "post_id", "posts"),
    ("notifications", "post_id", "posts"),
    ("notifications", "comment_id", "comments"),
)
_OF_USERS: Final = (
    ("posts", "author_id"),
    ("likes", "user_id"),
    ("comments", "author_id"),
    ("notifications", "user_id"),
    ("notifications", "actor_id"),
    ("follows", "follower_id"),
    ("follows", "followed_id"),
)

Document = Mapping[str, Any]


async def repair(mongo: Mongo) -> AsyncIterator[str]:
    """Set everything right; yield what was wrong, a line each, and at last how much that was."""
    database, wrong = mongo.database, 0
    for look in (_of_deleted_users, _of_deleted_parents, _post_counters, _tag_counters):
        async for finding in look(database):
            wrong += 1
            yield finding
    posts = await database["posts"].estimated_document_count()
    yield f"{posts} posts, {wrong} things were wrong"


async def _of_deleted_users(database: Database) -> AsyncIterator[str]:
    async for user in database["authors"].find({"deleted": True}, {"_id": 1}):
        for collection, field in _OF_USERS:
            gone = await database[collection].delete_many({field: user["_id"]})
            if gone.deleted_count:
                yield f"{gone.deleted_count} {collection} of the deleted user {user['_id']}"


async def _of_deleted_parents(database: Database) -> AsyncIterator[str]:
    for collection, field, parents in _CHILDREN:
        orphans: list[Document] = [
            {"$match": {field: {"$gt": ""}}},
            {"$group": {"_id": f"${field}"}},
            {
                "$lookup": {
                    "from": parents,
                    "localField": "_id",
                    "foreignField": "_id",
                    "as": "parent",
                }
            },
            {"$match": {"parent": []}},
        ]
        async for gone in await database[collection].aggregate(orphans, allowDiskUse=True):
            left = await database[collection].delete_many({field: gone["_id"]})
            parent = parents.removesuffix("s")
            yield f"{left.deleted_count} {collection} of the deleted {parent} {gone['_id']}"


async def _post_counters(database: Database) -> AsyncIterator[str]:
    after = ""
    counters = dict.fromkeys(_COUNTED, 1)
    while (
        posts := await database["posts"]
        .find({"_id": {"$gt": after}}, counters)
        .sort("_id")
        .limit(_BATCH)
        .to_list()
    ):
        after = posts[-1]["_id"]
        ids = [post["_id"] for post in posts]
        for counter, collection in _COUNTED.items():
            counts = await _counts(database, collection, ids)
            for post in posts:
                differs = post[counter] != counts.get(post["_id"], 0)
                if differs and (finding := await _recount_post(database, post["_id"], counter)):
                    yield finding


async def _counts(database: Database, collection: str, post_ids: list[str]) -> dict[str, int]:
    """Count by post."""
    pipeline: list[Document] = [
        {"$match": {"post_id": {"$in": post_ids}}},
        {"$group": {"_id": "$post_id", "n": {"$sum": 1}}},
    ]
    return {each["_id"]: each["n"] async for each in await database[collection].aggregate(pipeline)}


async def _recount_post(database: Database, post_id: str, counter: str) -> str:
    async def recount(session: AsyncClientSession) -> str:
        post = await database["posts"].find_one({"_id": post_id}, session=session)
        there = {"post_id": post_id}
        right = await database[_COUNTED[counter]].count_documents(there, session=session)
        if post is None or post[counter] == right:
            return ""
        await database["posts"].update_one(
            {"_id": post_id}, {"$set": {counter: right}}, session=session
        )
        return f"post {post_id}: {counter} {right} instead of {post[counter]}"

    return await _in_transaction(database, recount)


async def _tag_counters(database: Database) -> AsyncIterator[str]:
    pipeline: list[Document] = [
        {"$match": {"status": PUBLISHED}},
        {"$unwind": "$tag_keys"},
        {"$group": {"_id": "$tag_keys", "n": {"$sum": 1}}},
    ]
    counted = await database["posts"].aggregate(pipeline, allowDiskUse=True)
    right = {each["_id"]: each["n"] async for each in counted}
    known = {tag["_id"]: tag["post_count"] async for tag in database["tags"].find()}
    for key in right.keys() | known.keys():
        if right.get(key, 0) != known.get(key, 0) and (
            finding := await _recount_tag(database, key)
        ):
            yield finding


async def _recount_tag(database: Database, key: str) -> str:
    async def recount(session: AsyncClientSession) -> str:
        tag = await database["tags"].find_one({"_id": key}, session=session)
        there = {"tag_keys": key, "status": PUBLISHED}
        right = await database["posts"].count_documents(there, session=session)
        had = tag["post_count"] if tag else 0
        if had == right:
            return ""
        changes = {"$set": {"post_count": right}, "$setOnInsert": {"name": key}}
        await database["tags"].update_one({"_id": key}, changes, upsert=True, session=session)
        return f"tag {key}: {right} posts instead of {had}"

    return await _in_transaction(database, recount)


async def _in_transaction(
    database: Database, work: Callable[[AsyncClientSession], Awaitable[str]]
) -> str:
    async with database.client.start_session() as session:
        return str(await session.with_transaction(work))
