"""Errors of MongoDB and of its driver: one table from error code to ServiceError.

The codes are those of `error_codes.yml` in MongoDB's sources. A message of the driver quotes stored
values, so no such message is logged, sent, or chained to the ServiceError.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from bson.errors import BSONError
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
)

from postbus import reasons
from shared.errors import (
    NotReadyError,
    Outcome,
    ServiceError,
    database_busy,
    database_conflict,
    database_unavailable,
    internal,
)
from shared.limited_log import LimitedLog

__all__ = ["driver_errors", "is_transient", "service_error"]

_log = LimitedLog()
_MAX_TEXT: Final = 300
"""Characters of the text of an error of the driver."""


class _Answer(Enum):
    """The error that a caller gets."""

    UNAVAILABLE = auto()
    """UNAVAILABLE, DATABASE_UNAVAILABLE."""
    CONFLICT = auto()
    """ABORTED, DATABASE_CONFLICT: everything is rolled back, and retries did not help."""
    TAKEN = auto()
    """ALREADY_EXISTS."""
    INTERNAL = auto()
    """INTERNAL, with the code in the log: a fault of this program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """The answer to an error code, and the advice to the operator."""

    answer: _Answer
    unknown: bool = False
    """Whether the outcome is UNKNOWN even before the commit."""
    remedy: str = ""
    """What an operator must do, for the log; empty if the error ends without an operator."""


_UNAVAILABLE: Final = _Row(answer=_Answer.UNAVAILABLE)
_CONFLICT: Final = _Row(answer=_Answer.CONFLICT)
_TAKEN: Final = _Row(answer=_Answer.TAKEN)
_NOT_CONFIRMED: Final = _Row(answer=_Answer.UNAVAILABLE, unknown=True)
_UNEXPECTED: Final = _Row(answer=_Answer.INTERNAL, unknown=True)


def _misconfigured(remedy: str) -> _Row:
    return _Row(answer=_Answer.UNAVAILABLE, remedy=remedy)


_USER: Final = _misconfigured("check user, password and authSource in the address")
_RIGHTS: Final = _misconfigured("give the user the role readWrite on the database")
_REPLICA_SET: Final = _misconfigured(
    "start mongod with --replSet, because transactions need a replica set"
)

_TABLE: Final[Mapping[int, _Row]] = {
    **dict.fromkeys(
        (
            *(6, 7, 89, 202, 317, 384, 9001),  # network, and the server's own connections
            *(91, 11600),  # the server stops
            *(189, 10058, 10107, 11602, 13435, 13436),  # not the primary, or no longer
            *(133, 134, 70, 211),  # no suitable member, no majority, member or key not found yet
            *(43, 136, 175, 237),  # cursor lost or killed
            *(279, 355, 11601, 46841),  # operation killed, with its client or the storage
            *(50, 262),  # a time limit of the server
            *(24, 46, 202, 208, 365),  # locks, tickets and load
            14031,  # out of disk
        ),
        _UNAVAILABLE,
    ),
    **dict.fromkeys(
        (
            112,  # WriteConflict
            *(225, 244, 251, 290),  # transaction too old, aborted, unknown, or over its lifetime
            *(239, 246),  # snapshot too old or not available
        ),
        _CONFLICT,
    ),
    **dict.fromkeys((64, 75, 79, 100), _NOT_CONFIRMED),  # write concern
    **dict.fromkeys((11000, 11001, 12582), _TAKEN),
    **dict.fromkeys((11, 18, 334, 391, 8000), _USER),  # 8000: of Atlas
    13: _RIGHTS,
    **dict.fromkeys((20, 76), _REPLICA_SET),
}


def is_transient(error: BaseException) -> bool:
    """Return whether the server has rolled the transaction back, so that it may run again."""
    return _has_label(error, "TransientTransactionError")


def _has_label(error: BaseException, label: str) -> bool:
    return isinstance(error, PyMongoError) and error.has_error_label(label)


def _row_of(error: Exception) -> _Row:
    """Return the row for an error of the driver: by class without a code, else by code."""
    if isinstance(error, WriteConcernError):
        return _NOT_CONFIRMED
    code = _code(error)
    if code is not None:
        return _TABLE.get(code, _UNEXPECTED)
    return _NOT_CONFIRMED if isinstance(error, ConnectionFailure) else _UNEXPECTED


def service_error(error: Exception, *, committing: bool = False) -> ServiceError:
    """Return the ServiceError for an error of the driver, and log the advice to the operator.

    `committing` makes the outcome UNKNOWN: the commit may have been executed.
    """
    if isinstance(error, WaitQueueTimeoutError):
        return database_busy()
    if isinstance(error, ServerSelectionTimeoutError):  # nothing was sent
        unavailable = database_unavailable(Outcome.UNKNOWN if committing else Outcome.NO_EFFECT)
        unavailable.__cause__ = NotReadyError(_unreachable(error))
        return unavailable
    if _has_label(error, "UnknownTransactionCommitResult"):
        return database_unavailable(Outcome.UNKNOWN)
    row = _row_of(error)
    unknown = committing or (row.unknown and not is_transient(error))
    return _answer(row, error, Outcome.UNKNOWN if unknown else Outcome.NO_EFFECT)


def _unreachable(error: ServerSelectionTimeoutError) -> str:
    """Return why no server can be reached. This text of the driver has no stored values."""
    text = re.split(r" \(configured|, Timeout:", str(error), maxsplit=1)[0]
    return f"MongoDB cannot be reached: {text[:_MAX_TEXT]}. Check POSTBUS_MONGO_URL."


def _answer(row: _Row, error: Exception, outcome: int) -> ServiceError:
    match row.answer:
        case _Answer.UNAVAILABLE:
            return _unavailable(row, error, outcome)
        case _Answer.CONFLICT:
            conflict = database_conflict()
            conflict.outcome = Outcome.try_value(outcome)
            return conflict
        case _Answer.TAKEN:
            return ServiceError(reasons.ALREADY_EXISTS, "The resource exists already.")
        case _Answer.INTERNAL:
            _write_log("database.failed", error)
            return internal()


def _unavailable(row: _Row, error: Exception, outcome: int) -> ServiceError:
    """Return UNAVAILABLE; its cause is a NotReadyError if an operator must do something."""
    unavailable = database_unavailable(outcome)
    if row.remedy:
        cause = f"MongoDB reports error {_code(error)}: {row.remedy}."
        _write_log("database.unavailable", error, cause=cause)
        unavailable.__cause__ = NotReadyError(cause)
    return unavailable


@contextmanager
def driver_errors(*, committing: bool = False) -> Iterator[None]:
    """Turn errors of the driver into ServiceError, except in transactions that may run again.

    `perform` retries these; `committing` as in `service_error`.
    """
    try:
        yield
    except (PyMongoError, BSONError) as error:
        if is_transient(error):
            raise
        raised = service_error(error, committing=committing)
        raise raised from raised.__cause__  # never from the driver's error


def _write_log(event: str, error: Exception, **fields: str) -> None:
    code = _code(error)
    kind = type(error).__name__
    _log.write(logging.ERROR, event, key=str(code), code=code, error=kind, **fields)


def _code(error: Exception) -> int | None:
    """Return the server's error code; that of the first failed write of a bulk."""
    details: Mapping[str, Any] = getattr(error, "details", None) or {}
    if isinstance(error, BulkWriteError):
        failed = [*details.get("writeErrors", ()), *details.get("writeConcernErrors", ())]
        details = failed[0] if failed else details
        return details.get("code")
    code = getattr(error, "code", None)
    return code if isinstance(code, int) else details.get("code")
