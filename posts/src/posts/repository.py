"""The base of the repositories: pages of lists, and locks of documents.

Two transactions do not conflict if one deletes a document and the other one reads it and inserts
another document that depends on it: both commit, and the new document stays. The second one
therefore also changes the document that it reads (the MongoDB manual, "In-progress Transactions and
Stale Reads"). Then one of them runs again and sees the changes of the other one.

Documents that many transactions depend on at once, as a post with its comments and likes, are not
locked, because the transactions would conflict with each other. The consumer of the event of the
dependent document deletes it if the other one was deleted: see `NotificationTriggers`.
"""

from typing import Any, Final, TypeVar

from odmantic import Model
from odmantic.query import QueryExpression, lt
from uuid_utils.compat import uuid7

from shared.data.mongo_collection import Collection
from shared.data.mongo_database import Mongo
from shared.data.pages import Page

__all__ = ["COUNTED", "Repository", "lock"]

M = TypeVar("M", bound=Model)

COUNTED: Final = 50_000
"""The largest total that is counted; counting reads that many index entries."""


class Repository(Collection[M]):
    """The documents of a model. Subclasses add the queries that are specific to it."""

    def __init__(self, mongo: Mongo, model: type[M]) -> None:
        super().__init__(mongo.database, model)

    async def latest(self, page: Page, key: Any, *queries: QueryExpression) -> list[M]:
        """Return the documents on a page that match every query, in descending order of `key`.

        `key` is a field of the model that is unique among these documents.
        """
        after = [lt(key, page.after[0])] if page.after else []
        return await self.find(*queries, *after, sort=[(+key, -1)], limit=page.limit)

    async def lock(self, id_: str) -> M | None:
        """Lock a document and return it; None if it does not exist."""
        return await self.update_one(QueryExpression({"_id": id_}), lock())


def lock() -> dict[str, Any]:
    """Return the update that locks a document. No field changes but `lock`, which is not read.

    Its value is different each time: an update without a change does not conflict.
    """
    return {"$set": {"lock": str(uuid7())}}
