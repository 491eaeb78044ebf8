"""Counters that many transactions change at once, such as the likes of a popular post.

MongoDB aborts the second of two transactions that write one document, so a counter in the writers'
transactions limits them to one at a time. Instead, each transaction inserts its differences into
the collection `count_changes`, and inserts never conflict. After the commit, and before the caller
gets its reply, a second transaction adds the differences to the stored counters and deletes them:
the fold. One fold runs at a time in a process, and it includes everything that has been committed
until it begins, so that its cost is shared by the writers of a popular document. Reads use the
stored counters alone: lists are filtered, sorted and counted as if there were no differences, and
every acknowledged write is in them.

The choice was between this and two alternatives. Reads that add the differences would need a second
collection and a snapshot in every list, and could not sort by the sum. Counters in shards still
conflict with 32 writers. A process that is killed between the two transactions leaves differences;
every worker looks for them each second, and nothing is ever counted twice or lost.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final

from bson import ObjectId
from pymongo import DeleteOne, UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError, PyMongoError

from shared import tasks
from shared.errors import ServiceError
from shared.limited_log import LimitedLog
from shared.outbox.mongo_errors import driver_errors, is_transient
from shared.outbox.mongo_unit_of_work import (
    begin_transaction,
    session_of,
    time_left,
    unit_of_work_of,
)

__all__ = ["CountChange", "Counters"]

Document = dict[str, Any]

_WAIT_SECONDS: Final = 2.0
"""The time for which a committed call waits until its differences are folded."""
_SWEEP_SECONDS: Final = 1.0
_MAX_ROWS: Final = 1000
"""Differences in one fold."""
_FIRST_DELAY: Final = 0.004
_LONGEST_DELAY: Final = 0.1
_PAUSE: Final = 4
"""Between two folds of one document, as a multiple of the duration of the first: without a pause,
other transactions that change the document, and folds of other processes, always conflict."""
_LONGEST_PAUSE: Final = 0.25

_log = LimitedLog()


@dataclass(frozen=True, slots=True, kw_only=True)
class CountChange:
    """A difference of one counter of one document."""

    collection: str
    id: str
    counter: str
    """The field of the document."""
    step: int
    new: Mapping[str, Any] | None = None
    """If set, the document exists only while the counter is positive, and has these fields."""

    @property
    def key(self) -> str:
        """The key of the document among all collections."""
        return f"{self.collection}/{self.id}"

    def row(self) -> Document:
        """Return the stored document of this difference."""
        fields = {"key": self.key, "counter": self.counter, "step": self.step}
        return {"_id": ObjectId(), **fields} | ({"new": dict(self.new)} if self.new else {})


@dataclass(slots=True)
class _Fold:
    """A fold that has not begun, or has ended."""

    keys: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    """Keys that are not folded, because another transaction has changed their documents."""


class Counters:
    """The differences of one database. Safe for concurrent use."""

    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self._database = database
        self._changes = database["count_changes"]
        self._lock = asyncio.Lock()
        self._next = _Fold()
        self._last: tuple[set[str], float] = (set(), 0.0)
        """The keys of the last fold, and the time until which they are left to others."""

    async def create_indexes(self) -> None:
        """Create the index that finds the differences of a document."""
        with driver_errors():
            await self._changes.create_index("key")

    async def add(self, changes: Iterable[CountChange]) -> None:
        """Insert differences in the current unit of work; they are folded after its commit.

        Without a unit of work they are folded at once.
        """
        rows = [change.row() for change in changes]
        if not rows:
            return
        async with session_of(self._database) as session:
            await self._changes.insert_many(rows, session=session)
        keys = {row["_id"]: row["key"] for row in rows}
        if unit := unit_of_work_of(self._database):
            unit.counted |= keys
        else:
            await self.fold(keys)

    async def unfolded(
        self, key: str, counter: str, session: AsyncClientSession | None = None
    ) -> int:
        """Return the sum of the differences that are not in the stored counter of a document.

        In the transaction of `session`, or else of the current unit of work, the sum and the stored
        counter are of the same time, and include the changes of the transaction itself.
        """
        query, steps = {"key": key, "counter": counter}, {"step": 1}
        async with session_of(self._database) as current:
            found = self._changes.find(query, steps, session=session or current)
            return sum(row["step"] for row in await found.to_list())

    async def fold(self, rows: Mapping[ObjectId, str]) -> None:
        """Fold committed differences, keys by id; return after two seconds at most.

        Never fails, because the differences are committed: `sweeping` folds what is left.
        """
        try:
            async with asyncio.timeout(min(_WAIT_SECONDS, time_left())):
                with driver_errors():
                    await self._fold_all(rows)
        except (TimeoutError, ServiceError, PyMongoError) as error:
            _log.write(logging.WARNING, "counters.delayed", error=type(error).__name__)

    async def _fold_all(self, rows: Mapping[ObjectId, str]) -> None:
        delay = _FIRST_DELAY
        while rows:
            fold = self._next
            fold.keys.update(rows.values())
            async with self._lock:
                if fold is self._next:  # no other task has run it
                    await self._pause(fold.keys)
                    self._next = _Fold()
                    await self._run_fold(fold)
            rows = {id_: key for id_, key in rows.items() if key in fold.left}
            if rows:
                await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # jitter
                delay = min(2 * delay, _LONGEST_DELAY)
                rows = await self._existing(rows)  # another process may have folded them

    async def _pause(self, keys: set[str]) -> None:
        """Leave documents that were folded just now to other transactions for a while."""
        last, until = self._last
        if not last.isdisjoint(keys):
            await asyncio.sleep(until - time.monotonic())

    async def _run_fold(self, fold: _Fold) -> None:
        fold.left = fold.keys  # if this task is cancelled
        began = time.monotonic()
        fold.left = await self._run(sorted(fold.keys))
        now = time.monotonic()
        self._last = fold.keys, now + min(_PAUSE * (now - began), _LONGEST_PAUSE)

    async def _existing(self, rows: Mapping[ObjectId, str]) -> dict[ObjectId, str]:
        found = await self._changes.find({"_id": {"$in": list(rows)}}, {"key": 1}).to_list()
        return {row["_id"]: row["key"] for row in found}

    async def _run(self, keys: list[str]) -> set[str]:
        """Fold in one transaction; after a conflict, in two. Return the keys that are left."""
        try:
            return await self._run_once(keys)
        except PyMongoError as error:
            if not is_transient(error) and not isinstance(error, DuplicateKeyError):
                raise
        if len(keys) == 1:
            return set(keys)
        half = len(keys) // 2
        return await self._run(keys[:half]) | await self._run(keys[half:])

    async def _run_once(self, keys: list[str]) -> set[str]:
        async with (
            self._database.client.start_session() as session,
            await begin_transaction(session),
        ):
            found = self._changes.find({"key": {"$in": keys}}, session=session)
            rows = await found.limit(_MAX_ROWS).to_list()
            if not rows:
                await session.abort_transaction()
                return set()
            for collection, updates in _updates(rows).items():
                await self._database[collection].bulk_write(updates, session=session)
            ids = [row["_id"] for row in rows]
            await self._changes.delete_many({"_id": {"$in": ids}}, session=session)
        return set(keys) if len(rows) == _MAX_ROWS else set()

    async def leftovers(self) -> dict[ObjectId, str]:
        """Return differences that exist now, keys by id; 1000 at most."""
        with driver_errors():
            rows = await self._changes.find({}, {"key": 1}).limit(_MAX_ROWS).to_list()
        return {row["_id"]: row["key"] for row in rows}

    @asynccontextmanager
    async def sweeping(self) -> AsyncIterator[None]:
        """Fold the differences of killed processes, each second, until the end of the block."""
        task = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            await tasks.end(task)

    async def _sweep(self) -> None:
        """Fold differences that have existed for a second: their own process would be faster."""
        seen: dict[ObjectId, str] = {}
        while True:
            try:
                rows = await self.leftovers()
                await self.fold({id_: key for id_, key in rows.items() if id_ in seen})
                seen = rows
            except ServiceError as error:
                _log.write(logging.WARNING, "counters.not_swept", error=error.reason)
            await asyncio.sleep(_SWEEP_SECONDS)


def _updates(rows: list[Document]) -> dict[str, list[Any]]:
    """Return the updates by collection that add differences to the stored counters."""
    sums: dict[str, dict[str, int]] = {}
    new: dict[str, Document] = {}
    for row in sorted(rows, key=itemgetter("_id")):  # the oldest one has the fields of the document
        of_document = sums.setdefault(row["key"], {})
        of_document[row["counter"]] = of_document.get(row["counter"], 0) + row["step"]
        if "new" in row:
            new.setdefault(row["key"], row["new"])
    updates: dict[str, list[Any]] = {}
    for key, of_document in sums.items():
        collection, _, id_ = key.partition("/")
        changed = {name: step for name, step in of_document.items() if step}
        if changed:
            updates.setdefault(collection, []).extend(_update(id_, changed, new.get(key)))
    return updates


def _update(id_: str, steps: dict[str, int], new: Document | None) -> list[Any]:
    if new is None:
        return [UpdateOne({"_id": id_}, {"$inc": steps})]
    increment = UpdateOne({"_id": id_}, {"$inc": steps, "$setOnInsert": new}, upsert=True)
    if min(steps.values()) > 0:
        return [increment]
    return [increment, DeleteOne({"_id": id_, **{name: {"$lte": 0} for name in steps}})]
