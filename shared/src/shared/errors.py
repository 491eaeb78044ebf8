"""The one error type of the system."""

from collections.abc import Sequence
from datetime import timedelta

from postbus.bus.v1 import Code, Error, FieldViolation, Outcome

__all__ = [
    "Code",
    "FieldViolation",
    "Outcome",
    "ServiceError",
    "database_away",
    "database_busy",
    "deadline_exceeded",
    "internal",
    "invalid_field",
    "require_version",
    "version_mismatch",
]


class ServiceError(Exception):
    """Why a call failed: raised by handlers, carried as `postbus.bus.v1.Error`, rebuilt at the
    caller.

    `reason` is UPPER_SNAKE_CASE and stable; `message` is for people and goes to the caller, so it
    never tells what is inside. `retry_after` is in seconds.
    """

    def __init__(
        self,
        code: int,  # a Code; betterproto's enum members are plain int to type checkers
        reason: str,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        outcome: int = Outcome.NO_EFFECT,
        trace_id: str = "",
    ) -> None:
        self.code = Code.try_value(code)
        super().__init__(f"{self.code.name} {reason}: {message}")
        self.reason = reason
        self.message = message
        self.violations = list(violations)
        self.retry_after = retry_after
        self.outcome = Outcome.try_value(outcome)
        self.trace_id = trace_id

    @classmethod
    def from_message(cls, error: Error) -> "ServiceError":
        """Rebuild the error that a service answered with."""
        seconds = error.retry_after.total_seconds()
        return cls(
            error.code,
            error.reason,
            error.message,
            violations=error.violations,
            retry_after=seconds or None,
            outcome=error.outcome,
            trace_id=error.trace_id,
        )

    def to_message(self, trace_id: str) -> Error:
        """Return the error as it travels; `trace_id` is used where the error has none."""
        error = Error(
            code=self.code,
            reason=self.reason,
            message=self.message,
            violations=self.violations,
            outcome=self.outcome,
            trace_id=self.trace_id or trace_id,
        )
        if self.retry_after is not None:
            error.retry_after = timedelta(seconds=self.retry_after)
        return error


def invalid_field(reason: str, field: str, rule: str, message: str) -> ServiceError:
    """Return the INVALID_ARGUMENT error of one field, named as in JSON, that breaks a rule."""
    violation = FieldViolation(field=field, rule=rule, message=message)
    return ServiceError(Code.INVALID_ARGUMENT, reason, message, violations=[violation])


def internal() -> ServiceError:
    """The error of a fault of ours; the log has the cause, the caller nothing of the inside."""
    return ServiceError(
        Code.INTERNAL, "INTERNAL", "Something went wrong on our side.", outcome=Outcome.UNKNOWN
    )


def deadline_exceeded(outcome: int = Outcome.UNKNOWN) -> ServiceError:
    """The error of a call that had no answer in time."""
    return ServiceError(
        Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "No answer in time.", outcome=outcome
    )


def version_mismatch() -> ServiceError:
    """The error of a change to another version than the current one."""
    return ServiceError(
        Code.FAILED_PRECONDITION, "VERSION_MISMATCH", "It has changed meanwhile: read it again."
    )


def require_version(current: int, expected: int) -> None:
    """Raise FAILED_PRECONDITION unless `expected` is the current version, or 0 for any."""
    if expected not in (0, current):
        raise version_mismatch()


def database_away(outcome: int) -> ServiceError:
    """The error of a database that cannot be reached, or went away meanwhile."""
    return ServiceError(
        Code.UNAVAILABLE,
        "DATABASE_UNAVAILABLE",
        "The database is away.",
        retry_after=1,
        outcome=outcome,
    )


def database_busy() -> ServiceError:
    """The error of a call for which no connection to the database was free in time."""
    return ServiceError(
        Code.RESOURCE_EXHAUSTED,
        "DATABASE_BUSY",
        "Too many calls use the database at this moment.",
        retry_after=1,
    )
