"""The one error type of the system."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from postbus.bus.v1 import Code, Error, FieldViolation, Outcome

__all__ = [
    "MAX_VIOLATIONS",
    "Code",
    "FieldViolation",
    "Outcome",
    "ServiceError",
    "database_busy",
    "database_unavailable",
    "deadline_exceeded",
    "internal",
    "invalid_field",
    "require_version",
    "shown_name",
    "version_mismatch",
]


MAX_VIOLATIONS: Final = 20
"""Violations that an error reports."""
_MAX_TEXT: Final = 500
"""Characters of each text in an error. With 20 violations it is then smaller than 64 KiB."""
_SHOWN_CHARACTERS: Final = 64
"""Characters of a name in an error that a client has chosen."""


class ServiceError(Exception):
    """Why a call failed: raised by handlers, carried as `postbus.bus.v1.Error`, rebuilt at the
    caller.

    `reason` is UPPER_SNAKE_CASE and stable; `message` is for people and goes to the caller, so it
    never tells what is inside. `retry_after` is in seconds. At most 20 violations are kept;
    `more_violations` tells whether there are, or may be, others. Texts are cut to 500 characters.
    """

    def __init__(
        self,
        code: int,  # a Code; betterproto's enum members are plain int to type checkers
        reason: str,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        more_violations: bool = False,
        retry_after: float | None = None,
        outcome: int = Outcome.NO_EFFECT,
        trace_id: str = "",
    ) -> None:
        self.code = Code.try_value(code)
        super().__init__(f"{self.code.name} {reason}: {message}"[: 2 * _MAX_TEXT])
        self.reason = reason[:_MAX_TEXT]
        self.message = message[:_MAX_TEXT]
        self.violations = [_cut(each) for each in violations[:MAX_VIOLATIONS]]
        self.more_violations = more_violations or len(violations) > MAX_VIOLATIONS
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
            more_violations=error.more_violations,
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
            more_violations=self.more_violations,
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


def _cut(violation: FieldViolation) -> FieldViolation:
    texts = (violation.field, violation.rule, violation.message)
    if max(map(len, texts)) <= _MAX_TEXT:
        return violation
    field, rule, message = (text[:_MAX_TEXT] for text in texts)
    return FieldViolation(field=field, rule=rule, message=message)


def shown_name(name: str) -> str:
    """Return a name that a client has chosen, cut to 64 characters, without invisible ones."""
    cut = name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..."
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


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


def database_unavailable(outcome: int) -> ServiceError:
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
