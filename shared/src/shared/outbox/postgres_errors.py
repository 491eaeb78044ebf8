"""Errors of PostgreSQL by SQLSTATE (PostgreSQL's documentation, Appendix A).

One table decides about the answer, its outcome, a retry, and whether the connections are replaced.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal

import asyncpg
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from shared.context import current_context
from shared.errors import (
    NotReadyError,
    Outcome,
    ServiceError,
    database_busy,
    database_conflict,
    database_unavailable,
    deadline_exceeded,
)
from shared.limited_log import LimitedLog

__all__ = [
    "DatabaseFaultError",
    "connection_errors",
    "driver_errors",
    "replace_connections",
    "rule_of",
]

_log = LimitedLog()
_DRIVER: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""The base classes of the driver's errors."""
_MAX_STATEMENT: Final = 500
"""Characters of a statement in the log."""


class Answer(Enum):
    """The answer to a call that met an error of the database."""

    UNAVAILABLE = auto()
    CONFLICT = auto()
    """The database has rolled back: the work runs again, at last ABORTED."""
    CANCELLED = auto()
    """DEADLINE_EXCEEDED once the budget is used up, else UNAVAILABLE."""
    FAULT = auto()
    """INTERNAL: a fault of this program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What an error means."""

    answer: Answer
    maybe_committed: Literal["never", "at commit", "always"] = "never"
    """When the transaction may have been committed despite the error."""
    replaces: bool = False
    """Whether the connections of the pool are replaced."""
    mend: str = ""
    """How an operator ends a state that does not end by itself."""


_FAULT: Final = Rule(answer=Answer.FAULT)
_CONFLICT: Final = Rule(answer=Answer.CONFLICT)
_STALE_PLAN: Final = Rule(answer=Answer.CONFLICT, replaces=True)
_EXHAUSTED: Final = Rule(answer=Answer.UNAVAILABLE)
_LOST: Final = Rule(answer=Answer.UNAVAILABLE, maybe_committed="at commit", replaces=True)
_IN_DOUBT: Final = Rule(answer=Answer.UNAVAILABLE, maybe_committed="always", replaces=True)
_CANCELLED: Final = Rule(answer=Answer.CANCELLED, maybe_committed="at commit")
_READ_ONLY: Final = Rule(
    answer=Answer.UNAVAILABLE,
    replaces=True,
    mend="PostgreSQL is read-only. Let POSTBUS_POSTGRES_URL lead to the primary server, or set"
    " default_transaction_read_only to off.",
)
_LOG_IN: Final = Rule(
    answer=Answer.UNAVAILABLE, mend="Correct user and password in POSTBUS_POSTGRES_URL."
)
_DATABASE: Final = Rule(
    answer=Answer.UNAVAILABLE,
    mend="Create the database by the service's `migrate`, such as: python -m users migrate",
)
_SCHEMA: Final = Rule(
    answer=Answer.UNAVAILABLE,
    mend="The schema is not that of this program. Run the service's `migrate`, such as:"
    " python -m users migrate",
)
_RIGHTS: Final = Rule(
    answer=Answer.UNAVAILABLE,
    mend="Grant the user of POSTBUS_POSTGRES_URL the rights to read and write the tables.",
)
_POOLER: Final = Rule(
    answer=Answer.UNAVAILABLE,
    replaces=True,
    mend="A pooler in transaction mode needs POSTBUS_POSTGRES_POOLED=true.",
)

_RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(("00", "01", "02", "03", "09", "0A", "0B", "0F", "0L", "0P", "0Z"), _FAULT),
    **dict.fromkeys(("10", "20", "21", "22", "23", "24", "25", "27", "2B", "2D", "2F"), _FAULT),
    **dict.fromkeys(("34", "38", "39", "3B", "42", "44", "54", "55", "F0", "HV", "P0"), _FAULT),
    "08": _LOST,  # pgbouncer reports all of its own errors as 08P01
    "08007": _IN_DOUBT,
    "25006": _READ_ONLY,
    "25P03": _LOST,  # the time limits of idle and of long transactions end the connection
    "25P04": _LOST,
    "26": _POOLER,
    "28": _LOG_IN,
    "3D": _DATABASE,
    "3F": _SCHEMA,
    "40": _CONFLICT,
    "40002": _FAULT,
    "40003": _IN_DOUBT,
    "42501": _RIGHTS,
    "42703": _SCHEMA,
    "42P01": _SCHEMA,
    "42P05": _POOLER,
    "53": _EXHAUSTED,
    "55P03": _CONFLICT,
    "57": _LOST,
    "57014": _CANCELLED,
    "58": _LOST,
    "72": _CONFLICT,  # the snapshot is too old
    "XX": _FAULT,
}
"""By SQLSTATE, or by its class, the first two characters. Any other is a fault."""


class DatabaseFaultError(Exception):
    """An error that is a fault of this program, without the values of rows or parameters.

    `constraint` is the name of the violated constraint, or "". A driver's own text quotes values.
    """

    def __init__(self, kind: str, statement: str = "", constraint: str = "") -> None:
        super().__init__(f"{kind} {constraint}: {statement[:_MAX_STATEMENT]}")
        self.constraint = constraint


def rule_of(error: asyncpg.PostgresError) -> Rule:
    """Return the rule for an error of the server."""
    if isinstance(error, asyncpg.InvalidCachedStatementError):  # has the SQLSTATE of other errors
        return _STALE_PLAN
    state = error.sqlstate or ""
    return _RULES.get(state) or _RULES.get(state[:2]) or _FAULT


def replace_connections(context: ExceptionContext) -> None:
    """Make SQLAlchemy replace the connections of the pool; a listener of `handle_error`."""
    error = _server_error(context.original_exception)
    if error is not None and rule_of(error).replaces:
        context.is_disconnect = True


@contextmanager
def driver_errors(*, at_commit: bool = False) -> Iterator[None]:
    """Turn errors of the driver into ServiceError or DatabaseFaultError, by the table.

    UNAVAILABLE with reason DATABASE_UNAVAILABLE, whose cause is a NotReadyError; ABORTED with
    reason DATABASE_CONFLICT if the database has rolled back and the work can run again;
    RESOURCE_EXHAUSTED with reason DATABASE_BUSY. The outcome is NO_EFFECT, except where
    `at_commit` the transaction may have been committed.
    """
    try:
        yield
    except PoolTimeoutError:
        raise database_busy() from None
    except (OSError, StatementError, *_DRIVER) as error:
        translated = _translated(error, at_commit=at_commit)
        raise translated from translated.__cause__


@contextmanager
def connection_errors() -> Iterator[None]:
    """Turn every error of a new connection into UNAVAILABLE, DATABASE_UNAVAILABLE, NO_EFFECT.

    No such error is the fault of a handler.
    """
    try:
        yield
    except (OSError, ValueError, *_DRIVER) as error:
        refused = _refused(error)
        raise refused from refused.__cause__


def _refused(error: Exception) -> ServiceError:
    """Return the error to raise if there is no connection.

    Its cause has the server's message, which has no values of rows. The text of the error of an
    invalid address is left out: it can have a part of the password.
    """
    if isinstance(error, asyncpg.PostgresError):
        rule = rule_of(error)
        heals = rule.answer is not Answer.FAULT and not rule.mend
        cause = f"PostgreSQL refuses connections: {error.args[0]}. {rule.mend}".rstrip()
        return _unavailable(cause, error.sqlstate, logging.WARNING if heals else logging.ERROR)
    if isinstance(error, TimeoutError):
        return _unavailable("PostgreSQL does not respond.")
    if isinstance(error, (OSError, asyncpg.InternalClientError)):
        return _unavailable(f"PostgreSQL cannot be reached: {error}.")
    cause = f"POSTBUS_POSTGRES_URL is invalid ({type(error).__name__})."
    return _unavailable(cause, level=logging.ERROR)


def _translated(error: Exception, *, at_commit: bool) -> Exception:
    """Return the exception to raise for an error of the driver."""
    server_error = _server_error(error)
    if server_error is not None:
        return _by_rule(rule_of(server_error), server_error, error, at_commit=at_commit)
    closed = isinstance(error, (OSError, InterfaceError, asyncpg.InterfaceError))
    if closed or (isinstance(error, DBAPIError) and error.connection_invalidated):
        outcome = Outcome.UNKNOWN if at_commit else Outcome.NO_EFFECT
        return _unavailable(
            f"The connection was lost: {type(_cause(error)).__name__}.", outcome=outcome
        )
    return DatabaseFaultError(type(_cause(error)).__name__, _statement(error))


def _by_rule(
    rule: Rule, server_error: asyncpg.PostgresError, error: Exception, *, at_commit: bool
) -> Exception:
    """Return the exception to raise for an error that the server has reported."""
    kind = f"{server_error.sqlstate} {type(server_error).__name__}"
    if rule.answer is Answer.FAULT:
        return DatabaseFaultError(kind, _statement(error), server_error.constraint_name or "")
    if rule.answer is Answer.CONFLICT:
        return database_conflict()
    maybe = rule.maybe_committed == "always" or (at_commit and rule.maybe_committed == "at commit")
    outcome = Outcome.UNKNOWN if maybe else Outcome.NO_EFFECT
    context = current_context()
    if rule.answer is Answer.CANCELLED and context is not None and context.remaining <= 0:
        return deadline_exceeded(outcome)
    level = logging.ERROR if rule.mend else logging.WARNING
    cause = f"PostgreSQL reports {kind}. {rule.mend}".rstrip()
    return _unavailable(cause, server_error.sqlstate, level, outcome)


def _unavailable(
    cause: str,
    sqlstate: str | None = None,
    level: int = logging.WARNING,
    outcome: int = Outcome.NO_EFFECT,
) -> ServiceError:
    """Log why the database is unavailable, and return the error."""
    _log.write(level, "database.unavailable", key=sqlstate or "", sqlstate=sqlstate, cause=cause)
    error = database_unavailable(outcome)
    error.__cause__ = NotReadyError(cause)
    return error


def _cause(error: BaseException) -> BaseException:
    """Return the driver's own error of an error of SQLAlchemy or of its adapter."""
    original = (error.orig or error) if isinstance(error, StatementError) else error
    return original if isinstance(original, _DRIVER) else original.__cause__ or original


def _server_error(error: BaseException) -> asyncpg.PostgresError | None:
    cause = _cause(error)
    return cause if isinstance(cause, asyncpg.PostgresError) else None


def _statement(error: BaseException) -> str:
    return (error.statement or "") if isinstance(error, StatementError) else ""
