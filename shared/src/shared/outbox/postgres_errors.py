"""Errors of PostgreSQL as ServiceError, by the table of `postgres_sqlstates`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final

import asyncpg
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from postbus import reasons
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
from shared.logged_errors import LoggableError
from shared.outbox.postgres_sqlstates import Answer, Rule, rule_of
from shared.outbox.unit_of_work import current_unit_of_work

__all__ = [
    "DatabaseFaultError",
    "commit_errors",
    "connection_errors",
    "driver_errors",
    "reading_errors",
    "replace_connections",
]

_log = LimitedLog()
_DRIVER: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""The base classes of the driver's errors."""
_MAX_STATEMENT: Final = 500
"""Characters of a statement in the log."""
_MAX_TEXT: Final = 300
"""Characters of the text of a server, which may be one of another kind."""
_CHECK: Final = "Check POSTBUS_POSTGRES_URL."


class DatabaseFaultError(LoggableError):
    """An error that is a fault of this program, without the values of rows or parameters.

    `constraint` is the name of the violated constraint, or "". A driver's own text quotes values.
    """

    def __init__(self, kind: str, statement: str = "", constraint: str = "") -> None:
        super().__init__(f"{kind} {constraint}: {statement[:_MAX_STATEMENT]}")
        self.constraint = constraint


def replace_connections(context: ExceptionContext) -> None:
    """Make SQLAlchemy replace the connections of the pool; a listener of `handle_error`."""
    error = _server_error(context.original_exception)
    if error is not None and rule_of(error).replaces:
        context.is_disconnect = True


class DriverErrors:
    """A context manager that turns errors of the driver into ServiceError or DatabaseFaultError.

    UNAVAILABLE with reason DATABASE_UNAVAILABLE, whose cause is a NotReadyError; ABORTED with
    reason DATABASE_CONFLICT if the database has rolled back and the work can run again;
    RESOURCE_EXHAUSTED with reason DATABASE_BUSY. The outcome is NO_EFFECT, except where
    `at_commit` the transaction may have been committed. It has no state, and can be shared.
    """

    def __init__(self, *, at_commit: bool = False, reads: bool = False) -> None:
        self._at_commit = at_commit
        self._reads = reads

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if error is None:
            return
        if isinstance(error, PoolTimeoutError):
            raise database_busy() from None
        if isinstance(error, (OSError, StatementError, *_DRIVER)):
            translated = _translated(error, at_commit=self._at_commit)
            if self._reads and current_unit_of_work() is None:
                translated = _unless_conflict(translated)
            raise translated from translated.__cause__


driver_errors: Final = DriverErrors()
commit_errors: Final = DriverErrors(at_commit=True)
"""At the commit: the outcome is UNKNOWN if the connection is lost."""
reading_errors: Final = DriverErrors(reads=True)
"""Of reads: DATABASE_UNAVAILABLE in place of DATABASE_CONFLICT, except in a unit of work, which
runs again."""


def _unless_conflict(error: Exception) -> Exception:
    is_conflict = isinstance(error, ServiceError) and error.reason == reasons.DATABASE_CONFLICT
    return database_unavailable(Outcome.NO_EFFECT) if is_conflict else error


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
        text = str(error.args[0])[:_MAX_TEXT]
        cause = f"PostgreSQL refuses connections: {text}. {rule.mend or _CHECK}"
        return _unavailable(cause, error.sqlstate, logging.WARNING if heals else logging.ERROR)
    if isinstance(error, TimeoutError):
        return _unavailable(f"PostgreSQL does not respond. {_CHECK}")
    if isinstance(error, (OSError, asyncpg.InternalClientError)):
        return _unavailable(f"PostgreSQL cannot be reached: {str(error)[:_MAX_TEXT]}. {_CHECK}")
    cause = f"POSTBUS_POSTGRES_URL is invalid ({type(error).__name__})."
    return _unavailable(cause, level=logging.ERROR)


def _translated(error: Exception, *, at_commit: bool) -> Exception:
    """Return the exception to raise for an error of the driver."""
    server_error = _server_error(error)
    if server_error is not None:
        return _by_rule(rule_of(server_error), server_error, error, at_commit=at_commit)
    closed = isinstance(error, (OSError, InterfaceError, asyncpg.InterfaceError))
    if _is_own_fault(_cause(error)):
        closed = False
    if closed or (isinstance(error, DBAPIError) and error.connection_invalidated):
        outcome = Outcome.UNKNOWN if at_commit else Outcome.NO_EFFECT
        return _unavailable(
            f"The connection was lost: {type(_cause(error)).__name__}.", outcome=outcome
        )
    return DatabaseFaultError(type(_cause(error)).__name__, _statement(error))


def _is_own_fault(error: BaseException) -> bool:
    """Return whether this program has caused the error, such as by a value of the wrong type.

    The driver has the same class for closed connections.
    """
    return isinstance(error, asyncpg.InterfaceError) and isinstance(
        error, (ValueError, asyncpg.UnsupportedClientFeatureError)
    )


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
