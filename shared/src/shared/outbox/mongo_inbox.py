"""The inbox in MongoDB: the collections `inbox` and `versions`.

The entry of an operation also holds its events until they are published (`mongo_outbox.py`): a
separate document would make each transaction 20 % slower.
"""

from datetime import UTC, datetime
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase

from postbus.bus.v1 import Event
from shared.outbox.inbox import KEEP_SECONDS, AlreadyDone, Operation, stored_reply
from shared.outbox.mongo_outbox import OUTBOX_INDEX, REFUSED_INDEX, outbox_fields

__all__ = ["MongoInbox", "create_inbox_indexes", "erase_replies"]

Document = dict[str, Any]
Database = AsyncDatabase[Document]
_ERASE_BATCH: Final = 500
"""Replies that are erased at a time."""


async def create_inbox_indexes(database: Database) -> None:
    """Create the indexes of executed operations, by age and owner, and of unpublished events."""
    await database["inbox"].create_index("owner", sparse=True)
    await database["inbox"].create_index("done_at", expireAfterSeconds=KEEP_SECONDS)
    await database["inbox"].create_index(OUTBOX_INDEX, sparse=True)
    await database["inbox"].create_index(REFUSED_INDEX, sparse=True)


async def erase_replies(database: Database, owner: str) -> bool:
    """Erase a batch of stored replies; see Store.erase_replies. Not part of a unit of work."""
    inbox = database["inbox"]
    entries = await inbox.find({"owner": owner}, {"_id": 1}).limit(_ERASE_BATCH).to_list()
    is_empty = {"$eq": ["$reply", b""]}
    erased = {"$set": {"reply": {"$cond": [is_empty, "$reply", None]}}}
    ids = [entry["_id"] for entry in entries]
    await inbox.update_many({"_id": {"$in": ids}}, [erased, {"$unset": "owner"}])
    return len(ids) == _ERASE_BATCH


class MongoInbox:
    """Access to the inbox in one transaction of `session`."""

    def __init__(self, database: Database, session: AsyncClientSession) -> None:
        self._operations = database["inbox"]
        self._versions = database["versions"]
        self._session = session

    async def find(self, operation: Operation) -> AlreadyDone | None:
        """Return AlreadyDone with the stored reply, or None; errors as in `stored_reply`."""
        found = await self._operations.find_one({"_id": operation.key}, session=self._session)
        if found is None:
            return None
        return AlreadyDone(stored_reply(operation, found["fingerprint"], found["reply"]))

    async def is_late(self, operation: Operation) -> bool:
        """Return whether a newer event of the subject was handled before."""
        if not operation.version:
            return False
        newer = {"_id": operation.subject, "version": {"$gte": operation.version}}
        return bool(await self._versions.find_one(newer, session=self._session))

    async def insert(
        self, operation: Operation, reply: bytes, events: list[Event], *, owner: str
    ) -> None:
        """Insert an executed operation with its reply and its unpublished events."""
        entry: Document = {
            "_id": operation.key,
            "fingerprint": operation.fingerprint,
            "reply": None if operation.secret else reply,
        }
        if owner:
            entry["owner"] = owner
        entry |= outbox_fields(events) if events else {"done_at": self._now()}
        await self._operations.insert_one(entry, session=self._session)

    def _now(self) -> datetime:
        """Return the time of the database, which the reply to `find` has brought."""
        time = self._session.operation_time
        return datetime.now(UTC) if time is None else time.as_datetime()

    async def raise_version(self, operation: Operation) -> None:
        """Store the version of an event as the newest one of its subject."""
        version = {"$set": {"version": operation.version}}
        subject = {"_id": operation.subject}
        await self._versions.update_one(subject, version, upsert=True, session=self._session)
