"""The inbox: executed operations with their replies, so that a repeated operation has no effect.

The database parts are `postgres_inbox.py` and `mongo_inbox.py`.
"""

import hashlib
from dataclasses import dataclass
from typing import Final, NamedTuple

from postbus import reasons
from shared.errors import Outcome, ServiceError

__all__ = ["KEEP_SECONDS", "AlreadyDone", "Operation", "OperationResult", "stored_reply"]

KEEP_SECONDS: Final = 24 * 60 * 60
"""The time for which the inbox keeps an operation with its reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One effect that must happen once: a call by a caller, or an event at a consumer."""

    key: str
    """The key in the inbox, 64 hex digits; see `key_of`."""
    fingerprint: bytes = b""
    """SHA-256 of the request. The same key with another fingerprint is refused."""
    secret: bool = False
    """The reply must not be stored."""
    owner: str = ""
    """Of a call: id of the user whose data the reply contains; see Store.erase_replies."""
    begin_immediately: bool = False
    """Begin the transaction before the handler runs, because every execution has an effect."""
    subject: str = ""
    """Of an event: the key of consumer and aggregate."""
    version: int = 0
    """Of an event: the aggregate version; 0 for none."""
    handles_late: bool = False
    """Of an event: run the handler even if a newer event of the subject was handled before."""

    @staticmethod
    def key_of(*parts: str) -> str:
        """Return the hash of `parts`, 64 hex digits."""
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class OperationResult(NamedTuple):
    """The reply of an operation; `replayed` if an earlier execution has produced it."""

    reply: bytes
    replayed: bool = False


class AlreadyDone(BaseException):  # control flow, not an error
    """Raised at the first use of a transaction if its operation must not run again.

    `reply` is the stored reply; it is empty if a newer event of the subject was handled before. A
    BaseException, so that handlers do not catch it.
    """

    def __init__(self, reply: bytes = b"") -> None:
        super().__init__()
        self.reply = reply


def stored_reply(operation: Operation, fingerprint: bytes, reply: bytes | None) -> bytes:
    """Return the `reply` that the inbox has for `operation`.

    INVALID_ARGUMENT, OPERATION_ID_REUSED if it has the `fingerprint` of another request;
    ALREADY_EXISTS, ALREADY_DONE if the reply was secret, and therefore not stored, or was erased.
    """
    if fingerprint != operation.fingerprint:
        raise ServiceError(
            reasons.OPERATION_ID_REUSED,
            "The idempotency key belongs to another request. Use a new key.",
        )
    if reply is None:
        raise ServiceError(
            reasons.ALREADY_DONE,
            "The operation was executed before, and its reply is not stored.",
            outcome=Outcome.UNKNOWN,
        )
    return reply
