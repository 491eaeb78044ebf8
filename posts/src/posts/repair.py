"""The repair of derived data: authors, counters, and documents of deleted posts and users.

Safe while the system runs: nothing reads the documents that are deleted, and a counter is corrected
in a transaction that counts again. A counter is right if it and its differences that are not folded
yet, see `shared.data.mongo_counters`, have the sum of what they count.
"""

from collections.abc import AsyncIterator
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession

from postbus.users.v1 import UsersServiceStub
from posts.authors.comparison import compare_authors
from posts.models import PUBLISHED
from shared.data.mongo_database import Mongo
from shared.data.mongo_migrations import Database

__all__ = ["repair"]

_COUNTERS: Final = {"like_count": "likes", "comment_count": "comments"}
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

Document = dict[str, Any]


async def repair(mongo: Mongo, users: UsersServiceStub) -> AsyncIterator[str]:
    """Correct all derived data. Yield one line per correction, then a summary.

    Authors are compared with `users`, the owner of their data.
    """
    database, corrected = mongo.database, 0
    async for correction in compare_authors(database, users):
        corrected += not correction.startswith("authors ")
        yield correction
    for steps in (
        _delete_content_of_users(database),
        _delete_orphans(database),
        _recount_posts(mongo),
        _recount_tags(mongo),
    ):
        async for correction in steps:
            corrected += 1
            yield correction
    posts = await database["posts"].estimated_document_count()
    yield f"{posts} posts, {corrected} corrections"


async def _delete_content_of_users(database: Database) -> AsyncIterator[str]:
    async for user in database["authors"].find({"deleted": True}, {"_id": 1}):
        for collection, field in _OF_USERS:
            result = await database[collection].delete_many({field: user["_id"]})
            if result.deleted_count:
                yield f"{result.deleted_count} {collection} of the deleted user {user['_id']}"


async def _delete_orphans(database: Database) -> AsyncIterator[str]:
    for collection, field, parents in _CHILDREN:
        orphans: list[Document] = [
            {"$match": {field: {"$gt": ""}}},
            {"$group": {"_id": f"${field}"}},
            {"$lookup": _lookup(parents, "_id", "_id")},
            {"$match": {"found": []}},
        ]
        async for missing in await database[collection].aggregate(orphans, allowDiskUse=True):
            result = await database[collection].delete_many({field: missing["_id"]})
            parent = parents.removesuffix("s")
            yield f"{result.deleted_count} {collection} of the deleted {parent} {missing['_id']}"


async def _recount_posts(mongo: Mongo) -> AsyncIterator[str]:
    for counter, collection in _COUNTERS.items():
        lookup = _lookup(collection, "_id", "post_id") | {"pipeline": [{"$count": "n"}]}
        wrong: list[Document] = [
            {"$project": {counter: 1}},
            {"$lookup": lookup},
            {"$set": {"n": {"$ifNull": [{"$first": "$found.n"}, 0]}}},
            {"$match": {"$expr": {"$ne": ["$n", f"${counter}"]}}},
        ]
        async for post in await mongo.database["posts"].aggregate(wrong):
            id_ = post["_id"]
            query = {"post_id": id_}
            if found := await _recount(mongo, f"posts/{id_}", counter, of=collection, query=query):
                yield f"post {id_}: {counter} {found[0]} instead of {found[1]}"


def _lookup(collection: str, local: str, foreign: str) -> Document:
    return {"from": collection, "localField": local, "foreignField": foreign, "as": "found"}


async def _recount_tags(mongo: Mongo) -> AsyncIterator[str]:
    database = mongo.database
    pipeline: list[Document] = [
        {"$match": {"status": PUBLISHED}},
        {"$unwind": "$tag_keys"},
        {"$group": {"_id": "$tag_keys", "n": {"$sum": 1}}},
    ]
    counted = await database["posts"].aggregate(pipeline, allowDiskUse=True)
    counts = {each["_id"]: each["n"] async for each in counted}
    stored = {tag["_id"]: tag["post_count"] async for tag in database["tags"].find()}
    for key in counts.keys() | stored.keys():
        if counts.get(key, 0) == stored.get(key, 0):
            continue
        query, new = {"tag_keys": key, "status": PUBLISHED}, {"name": key}
        found = await _recount(mongo, f"tags/{key}", "post_count", of="posts", query=query, new=new)
        if found:
            yield f"tag {key}: {found[0]} posts instead of {found[1]}"


async def _recount(
    mongo: Mongo,
    key: str,
    counter: str,
    *,
    of: str,
    query: Document,
    new: Document | None = None,
) -> tuple[int, int] | None:
    """Correct a counter; return the right number and the stored one, or None if it is right.

    It counts the documents in the collection `of` that match `query`. If its own document is
    missing, one with the fields `new` is inserted, if they are given.
    """
    database, (collection, _, id_) = mongo.database, key.partition("/")

    async def recount(session: AsyncClientSession) -> tuple[int, int] | None:
        document = await database[collection].find_one({"_id": id_}, session=session)
        unfolded = await mongo.counters.unfolded(key, counter, session)
        count = await database[of].count_documents(query, session=session)
        stored = (document[counter] if document else 0) + unfolded
        if stored == count or (document is None and new is None):
            return None
        changes = {"$set": {counter: count - unfolded}, "$setOnInsert": new or {}}
        await database[collection].update_one(
            {"_id": id_}, changes, upsert=new is not None, session=session
        )
        return count, stored

    async with database.client.start_session() as session:
        return await session.with_transaction(recount)
