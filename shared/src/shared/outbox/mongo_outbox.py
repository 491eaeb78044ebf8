"""The outbox in MongoDB: the unpublished events in the entries of the collection `inbox`."""

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, Final

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from postbus.bus.v1 import Event
from shared.outbox.outbox import EncodedEvent, Publish, publish_all
from shared.wire import encode

__all__ = ["OUTBOX_INDEX", "forward", "outbox_fields"]

Document = dict[str, Any]
Inbox = AsyncCollection[Document]

OUTBOX_INDEX: Final = [("until", 1), ("event_id", 1)]
"""Finds entries with unpublished events: by the end of their lease, then in order."""
_BATCH: Final = 100
_LEASE: Final = timedelta(seconds=7)
"""The time for which one relay alone may publish the entries that it has claimed."""
_UNCLAIMED: Final = datetime(1970, 1, 1, tzinfo=UTC)


def outbox_fields(events: list[Event]) -> Document:
    """Return the fields of an inbox entry that hold its unpublished events."""
    encoded = [encode(event) for event in events]
    return {"events": encoded, "until": _UNCLAIMED, "event_id": events[0].id}


async def forward(database: AsyncDatabase[Document], publish: Publish) -> int:
    """See Store.forward. Entries are claimed with a lease, in case this process is killed."""
    inbox = database.get_collection("inbox", write_concern=WriteConcern(1))
    claimed = await _claim(inbox)
    if claimed is None:
        return 0
    all_published = False
    try:
        documents = await inbox.find(claimed, {"events": 1}).sort("event_id").to_list()
        entries = _first_batch(documents)
        events = [event for entry in entries.values() for event in entry]
        confirmed, failure = await publish_all(publish, events)
        await _mark_published(inbox, entries, confirmed)
        if failure is not None:
            raise failure
        all_published = len(entries) == len(documents)
    finally:
        if not all_published:  # end the lease of the remaining entries
            await inbox.update_many(claimed, {"$set": {"until": _UNCLAIMED}})
    return len(confirmed)


async def _now(inbox: Inbox) -> datetime:
    """Return the time of the database: the clocks of the relays differ."""
    now: datetime = (await inbox.database.command("hello"))["localTime"]
    return now


async def _claim(inbox: Inbox) -> Document | None:
    """Claim up to 100 entries with a lease; return the filter that finds them, None if none."""
    now = await _now(inbox)
    free = inbox.find({"until": {"$lt": now}}, {"_id": 1}).sort(OUTBOX_INDEX).limit(_BATCH)
    found = {"_id": {"$in": [entry["_id"] for entry in await free.to_list()]}}
    # an entry that is not on the majority yet could be rolled back after its events are published
    committed = inbox.with_options(read_concern=ReadConcern("majority"))
    ids = [entry["_id"] for entry in await committed.find(found, {"_id": 1}).to_list()]
    if not ids:
        return None
    claim = secrets.token_hex(8)
    lease = {"$set": {"claim": claim, "until": now + _LEASE}}
    await inbox.update_many({"_id": {"$in": ids}, "until": {"$lt": now}}, lease)
    return {"_id": {"$in": ids}, "claim": claim}


def _first_batch(documents: list[Document]) -> dict[str, list[EncodedEvent]]:
    """Return the events of the first entries by id: whole entries, until 100 events are reached."""
    before = accumulate((len(document["events"]) for document in documents), initial=0)
    return {
        document["_id"]: [EncodedEvent.read(body) for body in document["events"]]
        for document, count in zip(documents, before, strict=False)
        if count < _BATCH
    }


async def _mark_published(
    inbox: Inbox, entries: Mapping[str, list[EncodedEvent]], confirmed: set[str]
) -> None:
    """Remove the confirmed events; an entry without events is kept for KEEP_SECONDS."""
    finished = []
    for id_, events in entries.items():
        remaining = [event.body for event in events if event.id not in confirmed]
        if not remaining:
            finished.append(id_)
        elif len(remaining) < len(events):
            await inbox.update_one({"_id": id_}, {"$set": {"events": remaining}})
    fields = dict.fromkeys(("events", "until", "event_id", "claim"), "")
    change = {"$currentDate": {"done_at": True}, "$unset": fields}
    await inbox.update_many({"_id": {"$in": finished}}, change)
