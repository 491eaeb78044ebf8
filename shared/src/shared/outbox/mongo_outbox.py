"""The outbox in MongoDB: the unpublished events in the entries of the collection `inbox`."""

import asyncio
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, Final, NamedTuple

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from postbus.bus.v1 import Event
from shared.outbox.outbox import EncodedEvent, Publish, Published, publish_all, retry_delay
from shared.wire import encode

__all__ = ["OUTBOX_INDEX", "REFUSED_INDEX", "forward", "outbox_fields"]

Document = dict[str, Any]
Inbox = AsyncCollection[Document]

OUTBOX_INDEX: Final = [("until", 1), ("event_id", 1)]
"""Finds entries with unpublished events: by the end of their lease, then in order."""
REFUSED_INDEX: Final = "subjects"
"""Finds entries with refused events by the subjects of these events."""
_BATCH: Final = 100
_LEASE: Final = timedelta(seconds=7)
"""The time for which one relay alone may publish the entries that it has claimed."""
_UNCLAIMED: Final = datetime(1970, 1, 1, tzinfo=UTC)
_OUTBOX_FIELDS: Final = ("events", "until", "event_id", "claim", "attempts", "subjects")
_REFUSED: Final = {REFUSED_INDEX: {"$gt": ""}}


class _Entry(NamedTuple):
    """An inbox entry with unpublished events."""

    id: str
    events: list[EncodedEvent]
    attempts: int
    """Number of attempts at which the broker refused one of the events."""


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
    all_settled = False
    try:
        documents, some_refused = await asyncio.gather(
            inbox.find(claimed, {"events": 1, "attempts": 1}).sort("event_id").to_list(),
            inbox.find_one(_REFUSED, {"_id": 1}),
        )
        entries = _first_batch(documents)
        held = await _held_until(inbox, entries) if some_refused else {}
        published = await publish_all(
            publish, [event for entry in entries if entry.id not in held for event in entry.events]
        )
        await _mark_published(inbox, entries, published.confirmed)
        await _postpone(inbox, entries, held, published)
        if published.failure is not None:
            raise published.failure
        all_settled = len(entries) == len(documents)
    finally:
        if not all_settled:  # end the lease of the remaining entries
            await inbox.update_many(claimed, {"$set": {"until": _UNCLAIMED}})
    return len(published.confirmed) + len(published.refused)


async def _held_until(inbox: Inbox, entries: list[_Entry]) -> dict[str, datetime]:
    """Return the ids of the entries that follow a refused event of their subject, with its time."""
    subjects = {event.subject for entry in entries for event in entry.events}
    other = {"subjects": {"$in": list(subjects)}, "_id": {"$nin": [entry.id for entry in entries]}}
    soonest = await _now(inbox) + timedelta(seconds=1)
    held: dict[str, datetime] = {}
    async for refused in inbox.find(other, {"subjects": 1, "event_id": 1, "until": 1}):
        for entry in entries:
            same = any(event.subject in refused["subjects"] for event in entry.events)
            if same and entry.events[0].id > refused["event_id"]:
                held[entry.id] = max(held.get(entry.id, soonest), refused["until"])
    return held


async def _postpone(
    inbox: Inbox, entries: list[_Entry], held: Mapping[str, datetime], published: Published
) -> None:
    """End the lease of entries with refused events, and of held ones, at their next attempt."""
    now = await _now(inbox) if held or published.refused else _UNCLAIMED
    for entry in entries:
        remaining = [event for event in entry.events if event.id not in published.confirmed]
        if entry.id in held:
            until, attempts = held[entry.id], entry.attempts
        elif any(event.id in published.refused for event in remaining):
            until = now + timedelta(seconds=retry_delay(entry.attempts))
            attempts = entry.attempts + 1
        else:
            continue
        subjects = {event.subject for event in remaining if event.subject}
        fields = {"until": until, "attempts": attempts, "subjects": list(subjects)}
        await inbox.update_one({"_id": entry.id}, {"$set": fields, "$unset": {"claim": ""}})


async def _now(inbox: Inbox) -> datetime:
    """Return the time of the database: the clocks of the relays differ."""
    now: datetime = (await inbox.database.command("hello"))["localTime"]
    return now.replace(tzinfo=UTC)


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


def _first_batch(documents: list[Document]) -> list[_Entry]:
    """Return the first entries: whole entries, until 100 events are reached."""
    before = accumulate((len(document["events"]) for document in documents), initial=0)
    return [
        _Entry(
            document["_id"],
            [EncodedEvent.read(body) for body in document["events"]],
            document.get("attempts", 0),
        )
        for document, count in zip(documents, before, strict=False)
        if count < _BATCH
    ]


async def _mark_published(inbox: Inbox, entries: list[_Entry], confirmed: set[str]) -> None:
    """Remove the confirmed events; an entry without events is kept for KEEP_SECONDS."""
    finished = []
    for entry in entries:
        remaining = [event.body for event in entry.events if event.id not in confirmed]
        if not remaining:
            finished.append(entry.id)
        elif len(remaining) < len(entry.events):
            await inbox.update_one({"_id": entry.id}, {"$set": {"events": remaining}})
    fields = dict.fromkeys(_OUTBOX_FIELDS, "")
    change = {"$currentDate": {"done_at": True}, "$unset": fields}
    await inbox.update_many({"_id": {"$in": finished}}, change)
