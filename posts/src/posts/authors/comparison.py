"""Compare the author projection with its owner, `users`, and correct it.

Safe while the system runs: a stored author is read before the profile, so the profile is at least
as new, and an author that has changed in the meantime is left alone.
"""

import re
from collections.abc import AsyncIterator
from typing import Any, Final

from postbus.users.v1 import BatchGetUsersRequest, Profile, UsersServiceStub
from posts.models import Author
from shared.data.mongo_migrations import Database
from shared.errors import ServiceError
from shared.outbox.inbox import Operation

__all__ = ["compare_authors"]

_BATCH: Final = 100
"""Authors per call of `users`, which takes no more."""
_SUSPICIOUS: Final = 20
"""From so many authors on of which `users` knows none, its database is taken for the wrong one."""
_USER_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CONSUMER: Final = "posts.postbus.users.v1.UserProfileUpdated"

Document = dict[str, Any]


async def compare_authors(database: Database, users: UsersServiceStub) -> AsyncIterator[str]:
    """Correct names, versions and tombstones that differ from `users`. Yield one line for each.

    A line that begins with `authors` says that they could not be compared.
    """
    after = ""
    while batch := await _next(database, after):
        after = batch[-1]["_id"]
        known = [author for author in batch if _USER_ID.fullmatch(author["_id"])]
        try:
            profiles = await _fetch(users, [author["_id"] for author in known])
        except ServiceError as error:
            yield f"authors not compared: users answers {error.reason}; it has to run"
            return
        living = [author for author in known if not author.get("deleted")]
        if len(living) >= _SUSPICIOUS and not profiles:
            yield f"authors not compared: users knows none of {len(living)}"
            return
        for author in known:
            if line := await _correct(database, author, profiles.get(author["_id"])):
                yield line


async def _next(database: Database, after: str) -> list[Document]:
    query = {"_id": {"$gt": after}, "version": {"$gt": 0}}
    return await database["authors"].find(query).sort("_id").limit(_BATCH).to_list()


async def _fetch(users: UsersServiceStub, ids: list[str]) -> dict[str, Profile]:
    if not ids:
        return {}
    response = await users.batch_get_users(BatchGetUsersRequest(ids=ids))
    return {profile.id: profile for profile in response.profiles}


async def _correct(database: Database, author: Document, profile: Profile | None) -> str:
    """Store the author as `users` has it; return the correction, or an empty string."""
    id_ = author["_id"]
    if profile is None:
        true, what = Author.tombstone(id_), "is deleted"
    else:
        true = Author.from_message(id_, profile)
        what = f"is {profile.username}, version {profile.version}"
    fields = true.model_dump_doc()
    wrong = [name for name in _compared(profile) if author.get(name) != fields[name]]
    newer = wrong == ["version"] and author["version"] < fields["version"]
    if not wrong or newer:  # no event is published for a change that no author shows: of the bio
        return ""
    unchanged = {"_id": id_} | {name: author.get(name) for name in ("version", "deleted")}
    del fields["_id"], fields["revision"]
    result = await database["authors"].update_one(unchanged, {"$set": fields})
    if not result.matched_count:
        return ""
    if profile is not None:
        await _forget_versions(database, profile)
    return f"author {id_} {what}: {', '.join(wrong)} corrected"


def _compared(profile: Profile | None) -> tuple[str, ...]:
    """Return the compared fields; a tombstone of another release may have other names."""
    if profile is None:
        return ("deleted",)
    return ("username", "name_key", "display_name", "image_url", "version", "deleted")


async def _forget_versions(database: Database, profile: Profile) -> None:
    """Delete the version of the last event if it is no version of the owner.

    Otherwise the consumer would take the next true events for late ones.
    """
    subject = Operation.key_of(_CONSUMER, profile.id)
    forged = {"_id": subject, "version": {"$gt": profile.version}}
    await database["versions"].delete_one(forged)
