"""Migrations of a service's MongoDB database: indexes, and the shapes of documents."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase

from shared.data.mongo_database import Mongo
from shared.outbox.mongo_errors import driver_errors

__all__ = ["Database", "Migration", "migrate"]

Database = AsyncDatabase[dict[str, Any]]
Step = Callable[[Database], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One version of a database. Both steps must be idempotent: an interrupted step is repeated."""

    up: Step
    down: Step


async def migrate(mongo: Mongo, migrations: Sequence[Migration], version: int) -> None:
    """Migrate a database forward or back to `version`; 1 is the first of `migrations`, 0 is none.

    The collection `migrations` of the database stores the current version.
    """
    database = mongo.database
    with driver_errors():
        found = await database["migrations"].find_one({"_id": "version"})
        current = found["version"] if found else 0
        while current != version:
            if current < version:
                await migrations[current].up(database)
                current += 1
            else:
                current -= 1
                await migrations[current].down(database)
            await database["migrations"].update_one(
                {"_id": "version"}, {"$set": {"version": current}}, upsert=True
            )
