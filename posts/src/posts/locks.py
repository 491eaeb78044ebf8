"""Locks of documents on which other documents depend, for example of a like for its notification.

Two transactions do not conflict if one deletes a document and the other one reads it and inserts
another document: both commit, and the new document stays. The second one therefore also changes
the document that it reads (the MongoDB manual, "In-progress Transactions and Stale Reads"). Then
one of them runs again and sees the changes of the other one.

Documents that many transactions depend on at once, as a post with its comments and likes, are not
locked, because the transactions would conflict with each other. The consumer of the event of the
dependent document deletes it if the other one was deleted: see `NotificationTriggers`.
"""

from typing import Any

from uuid_utils.compat import uuid7

__all__ = ["lock"]


def lock() -> dict[str, Any]:
    """Return the update that locks a document. No field changes but `lock`, which is not read.

    Its value is different each time: an update without a change does not conflict.
    """
    return {"$set": {"lock": str(uuid7())}}
