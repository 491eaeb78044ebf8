"""Migrations of the database of `posts`. Afterwards the indexes of the models are created.

Each migration is self-contained, so that later changes of the models do not affect it.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pymongo import UpdateOne

from postbus.bus.v1 import Event
from shared.data.mongo_counters import Counters
from shared.data.mongo_migrations import Database, Migration
from shared.data.search_terms import distinct_words, words
from shared.wire import decode

__all__ = ["MIGRATIONS"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICRO: Final = timedelta(microseconds=1)
_NEW: Final = ("tags", "likes", "comments", "follows", "notifications")
_UNCHANGED: Final = ("author_id", "title", "body", "version")


async def _add_slugs_and_counters(database: Database) -> None:
    """Add slugs, status and counters to posts and names to authors; convert the times."""
    posts, authors = database["posts"], database["authors"]
    old = {"shape": {"$exists": False}}
    while found := await posts.find(old).limit(500).to_list():
        await posts.bulk_write([_replaced(post, _post_with_slug(post)) for post in found])
    while found := await authors.find(old).limit(500).to_list():
        named = [{"name_key": each["username"].lower(), "version": 1} for each in found]
        rest = {"display_name": "", "image_url": "", "deleted": False, "shape": 2}
        await authors.bulk_write(
            [_replaced(old, old | name | rest) for old, name in zip(found, named, strict=True)]
        )


async def _remove_slugs_and_counters(database: Database) -> None:
    """Convert back. Drafts, slugs, tags, likes, comments, follows and notifications are lost."""
    posts, authors = database["posts"], database["authors"]
    await posts.delete_many({"status": "draft"})
    for collection in (posts, authors):
        await collection.drop_indexes()
    while found := await posts.find({"shape": 2}).limit(500).to_list():
        await posts.bulk_write([_replaced(post, _plain_post(post)) for post in found])
    await authors.delete_many({"deleted": True})
    new = ("name_key", "display_name", "image_url", "version", "deleted", "shape")
    await authors.update_many({}, {"$unset": dict.fromkeys(new, "")})
    for name in _NEW:
        await database.drop_collection(name)


def _replaced(old: dict[str, Any], new: dict[str, Any]) -> UpdateOne:
    return UpdateOne({"_id": old["_id"]}, [{"$replaceWith": {"$literal": new}}])


def _post_with_slug(old: dict[str, Any]) -> dict[str, Any]:
    """Return the new document. The end of the id makes the slug unique."""
    created, updated = ((old[name] - _EPOCH) // _MICRO for name in ("created_at", "updated_at"))
    title = "-".join(words(old["title"]))[:80].strip("-")
    slug = f"{title}-{old['_id'][-12:]}".strip("-")
    return {name: old[name] for name in ("_id", *_UNCHANGED)} | {
        "slug": slug,
        "slugs": [slug],
        "summary": "",
        "tags": [],
        "tag_keys": [],
        "words": distinct_words(old["title"]),
        "status": "published",
        "place": f"{created:016x} {old['_id']}",
        "created_at": created,
        "updated_at": updated,
        "published_at": created,
        "like_count": 0,
        "comment_count": 0,
        "shape": 2,
    }


def _plain_post(new: dict[str, Any]) -> dict[str, Any]:
    times = {name: _EPOCH + new[name] * _MICRO for name in ("created_at", "updated_at")}
    return {name: new[name] for name in ("_id", *_UNCHANGED)} | times


async def _move_events_to_inbox(database: Database) -> None:
    """Move the events of the outbox to the inbox."""
    inbox, outbox = database["inbox"], database["outbox"]
    while found := await outbox.find().limit(500).to_list():
        for old in found:
            waiting = {"events": [old["event"]], "event_id": old["_id"], "until": _EPOCH}
            change = {"$set": waiting, "$unset": {"done_at": ""}}
            await inbox.update_one({"_id": old["_id"]}, change, upsert=True)
            await outbox.delete_one({"_id": old["_id"]})


async def _move_events_to_outbox(database: Database) -> None:
    inbox, outbox = database["inbox"], database["outbox"]
    while found := await inbox.find({"until": {"$exists": True}}).limit(500).to_list():
        for entry in found:
            for event in entry["events"]:
                waiting = {"$set": {"event": event, "until": _EPOCH}}
                await outbox.update_one({"_id": decode(Event, event).id}, waiting, upsert=True)
            done = {"$set": {"done_at": "$$NOW"}}  # the clock of the database
            old = {"$unset": ["events", "until", "event_id", "claim"]}
            await inbox.update_one({"_id": entry["_id"]}, [done, old])


async def _up_to_likers(database: Database) -> None:
    """Drop an index of likes: another one starts with the post, too, and sorts its likes."""
    await _drop_indexes(database, "likes", "post_id_1")


async def _down_from_likers(database: Database) -> None:
    await database["likes"].create_index("post_id")
    await _drop_indexes(database, "likes", "post_id_1_place_-1__id_-1")
    by_update = "status_1_updated_at_1__id_1"
    await _drop_indexes(database, "posts", by_update, f"author_id_1_{by_update}")


async def _up_to_count_changes(database: Database) -> None:
    """Create the collection of differences; the stored counters stay as they are."""
    await database["count_changes"].create_index("key")


async def _down_from_count_changes(database: Database) -> None:
    """Add the differences that killed processes have left to the stored counters."""
    counters = Counters(database)
    while rows := await counters.leftovers():
        await counters.fold(rows)
    await database.drop_collection("count_changes")


async def _up_to_listed_comments(database: Database) -> None:
    """Drop an index of comments: another one starts with the author, too, and sorts by id."""
    await _drop_indexes(database, "comments", "author_id_1")


async def _down_from_listed_comments(database: Database) -> None:
    await database["comments"].create_index("author_id")
    await _drop_indexes(database, "comments", "author_id_1__id_-1")


async def _drop_indexes(database: Database, collection: str, *names: str) -> None:
    for name in set(names) & (await database[collection].index_information()).keys():
        await database[collection].drop_index(name)


MIGRATIONS: Final = (
    Migration(up=_add_slugs_and_counters, down=_remove_slugs_and_counters),
    Migration(up=_move_events_to_inbox, down=_move_events_to_outbox),
    Migration(up=_up_to_likers, down=_down_from_likers),
    Migration(up=_up_to_count_changes, down=_down_from_count_changes),
    Migration(up=_up_to_listed_comments, down=_down_from_listed_comments),
)
