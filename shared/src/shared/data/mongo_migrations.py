"""Migrations of a service's MongoDB database: indexes, and the shapes of documents.

The document `version` of the collection `migrations` has the current version, and the lease of the
program that migrates. So the command can be started many times at once: one program migrates, the
others wait.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
from pymongo import ReturnDocument
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError

from shared import tasks
from shared.data.mongo_database import Mongo
from shared.outbox.mongo_errors import driver_errors

__all__ = ["Database", "Migration", "MigrationError", "migrate"]

_log = structlog.get_logger()
_LEASE_MS: Final = 10_000
"""The time after which another program continues the migration of a killed one."""
_RENEW_SECONDS: Final = 2.5
_POLL_SECONDS: Final = 0.2
_END: Final = {"$add": ["$$NOW", _LEASE_MS]}

Database = AsyncDatabase[dict[str, Any]]
Step = Callable[[Database], Awaitable[None]]


class MigrationError(Exception):
    """A migration that is not possible; the text is for the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One version of a database. Both steps must be idempotent: an interrupted step is repeated."""

    up: Step
    down: Step


async def migrate(mongo: Mongo, migrations: Sequence[Migration], version: int | None = None) -> int:
    """Migrate a database forward or back to `version`; return the version that it has.

    1 is the first of `migrations`, 0 is none. Without `version`, migrate to the last one, and never
    back: a newer program may have migrated further. Safe to run many times at once.

    Raises NotReadyError as `Mongo.ping`; MigrationError if the database has a version that
    `migrations` does not contain, or if another program has taken the lease.
    """
    with driver_errors():
        await mongo.ping()
        lease = _Lease(mongo.database, secrets.token_hex(8))
        await lease.wait()
        running = [
            asyncio.create_task(_migrate(lease, migrations, version)),
            asyncio.create_task(lease.keep()),
        ]
        try:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            await tasks.end(*running)
            await lease.release()


async def _migrate(lease: "_Lease", migrations: Sequence[Migration], version: int | None) -> int:
    current, known = await lease.version(), len(migrations)
    if current > known and version is None:
        _log.warning("migrate.database_is_newer", version=current, known=known)
        return current
    if current > known:
        raise MigrationError(
            f"The database has version {current}, and this program knows versions up to {known}."
            f" Migrate back with the program that made version {current}."
        )
    target = known if version is None else version
    while current != target:
        if current < target:
            await migrations[current].up(lease.database)
            current += 1
        else:
            current -= 1
            await migrations[current].down(lease.database)
        await lease.set_version(current)
    return current


@dataclass(frozen=True, slots=True)
class _Lease:
    """The right to migrate, held by one program. Times are of the database's clock."""

    database: Database
    owner: str

    @property
    def _versions(self) -> AsyncCollection[dict[str, Any]]:
        return self.database["migrations"]

    async def wait(self) -> None:
        """Return once this program has the lease."""
        with suppress(DuplicateKeyError):  # another program has inserted it at the same time
            none = {"$setOnInsert": {"version": 0}}
            await self._versions.update_one({"_id": "version"}, none, upsert=True)
        waiting = False
        while not await self._take():
            if not waiting:
                _log.info("migrate.waits_for_another")
            waiting = True
            await asyncio.sleep(_POLL_SECONDS)

    async def _take(self) -> bool:
        free = {"_id": "version", "$expr": {"$lte": [{"$ifNull": ["$until", 0]}, "$$NOW"]}}
        lease = {"owner": {"$literal": self.owner}, "until": _END}
        return (await self._versions.update_one(free, [{"$set": lease}])).matched_count == 1

    async def keep(self) -> int:
        """Renew the lease until cancelled; MigrationError if another program has it."""
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            await self._set({"until": _END})

    async def version(self) -> int:
        """Return the version of the database; MigrationError if another program has the lease."""
        return int((await self._set({"until": _END}))["version"])

    async def set_version(self, version: int) -> None:
        """Store the version; MigrationError if another program has the lease."""
        await self._set({"version": version})

    async def _set(self, fields: dict[str, Any]) -> dict[str, Any]:
        stored = await self._versions.find_one_and_update(
            {"_id": "version", "owner": self.owner},
            [{"$set": fields}],
            return_document=ReturnDocument.AFTER,
        )
        if stored is None:
            raise MigrationError("Another program has taken over the migration. Run it again.")
        return dict(stored)

    async def release(self) -> None:
        """End the lease."""
        await self._versions.update_one(
            {"_id": "version", "owner": self.owner}, {"$unset": {"owner": "", "until": ""}}
        )
