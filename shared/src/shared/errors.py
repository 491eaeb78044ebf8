"""The error type of all services, and the errors that several of them raise."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from postbus import reasons
from postbus.bus.v1 import Code, Error, ErrorDetail, FieldViolation, Outcome
from postbus.reasons import REASONS
from postbus_runtime.conversions import MAX_DURATION_SECONDS
from postbus_runtime.reasons import Reason
from shared.metadata import NO_METADATA, Metadata

__all__ = [
    "MAX_VIOLATIONS",
    "Code",
    "ErrorDetail",
    "FieldViolation",
    "NotReadyError",
    "Outcome",
    "Reason",
    "ServiceError",
    "database_busy",
    "database_conflict",
    "database_unavailable",
    "deadline_exceeded",
    "internal",
    "invalid_field",
    "require_version",
    "shown_name",
    "version_mismatch",
]


MAX_VIOLATIONS: Final = 20
"""Violations in one error."""
_MAX_DETAILS: Final = 20
"""Details in one error."""
_MAX_DETAIL_BYTES: Final = 32 * 1024
"""Bytes of all details of an error; those beyond are left out."""
_MAX_TEXT: Final = 500
"""Characters of each text in an error, so that an error with 20 violations is below 64 KiB."""
_CODES: Final = frozenset(map(int, Code)) - {int(Code.UNSPECIFIED)}
_OUTCOMES: Final = frozenset(map(int, Outcome))
_SHOWN_CHARACTERS: Final = 64
"""Characters of a name in an error that the client has sent, such as that of a member."""


class ServiceError(Exception):
    """The failure of a call: raised by a handler, sent as `postbus.bus.v1.Error`, and raised again
    at the caller.

    `reason` is one of `postbus.reasons`; the code follows from it. `message` is for people; the
    caller sees it, so it must not contain internals. `retry_after` is in seconds. At most 20
    violations are kept; `more_violations` is set if there are, or may be, more. Texts are truncated
    to 500 characters.
    `details` are further messages for clients of the Connect protocol, at most 20 and 32 KiB.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        more_violations: bool = False,
        retry_after: float | None = None,
        outcome: int = Outcome.NO_EFFECT,
        trace_id: str = "",
        details: Sequence[ErrorDetail] = (),
    ) -> None:
        self.code = Code.try_value(reason.code)
        super().__init__(f"{self.code.name} {reason}: {message}"[: 2 * _MAX_TEXT])
        self.reason = reason if len(reason) <= _MAX_TEXT else _truncated_reason(reason)
        self.message = message[:_MAX_TEXT]
        self.violations = [_truncated(each) for each in violations[:MAX_VIOLATIONS]]
        self.more_violations = more_violations or len(violations) > MAX_VIOLATIONS
        self.retry_after = retry_after
        self.outcome = Outcome.try_value(outcome)
        self.trace_id = trace_id
        self.details = _bounded(details) if details else []
        self.reply_headers: Metadata = NO_METADATA
        """Header fields that came with the error, if it was raised by a call."""
        self.reply_trailers: Metadata = NO_METADATA
        """Trailer fields that came with the error, if it was raised by a call."""

    @classmethod
    def from_message(cls, error: Any) -> "ServiceError":
        """Return the error in a Reply; `error` is google's Error of postbus.bus.v1.

        The numbers of a later contract count as unknown.
        """
        seconds = error.retry_after.seconds + error.retry_after.nanos / 1_000_000_000
        violations = [
            FieldViolation(field=each.field, rule=each.rule, message=each.message)
            for each in error.violations[:MAX_VIOLATIONS]
        ]
        return cls(
            _reason(error.reason, error.code if error.code in _CODES else Code.UNKNOWN),
            error.message,
            violations=violations,
            more_violations=error.more_violations or len(error.violations) > MAX_VIOLATIONS,
            retry_after=seconds if 0 < seconds <= MAX_DURATION_SECONDS else None,
            outcome=error.outcome if error.outcome in _OUTCOMES else Outcome.UNKNOWN,
            trace_id=error.trace_id[:_MAX_TEXT],
            details=[
                ErrorDetail(type=each.type, value=each.value)
                for each in error.details[:_MAX_DETAILS]
            ],
        )

    def to_message(self, trace_id: str) -> Error:
        """Return the error as a message; `trace_id` is used if the error has none."""
        error = Error(
            code=self.code,
            reason=self.reason,
            message=self.message,
            violations=self.violations,
            more_violations=self.more_violations,
            outcome=self.outcome,
            trace_id=self.trace_id or trace_id,
            details=self.details,
        )
        if self.retry_after is not None:
            error.retry_after = timedelta(seconds=self.retry_after)
        return error


class NotReadyError(Exception):
    """Raised by a probe, with a text that names the fault and the command that corrects it.

    Operators see the text in /readyz and in the log.
    """


def _reason(name: str, code: int) -> Reason:
    """Return the reason of a received error: a constant, or one that this release does not have."""
    known = REASONS.get(name)
    return known if known is not None and known.code == code else Reason(name, code)


def invalid_field(reason: Reason, field: str, rule: str, message: str) -> ServiceError:
    """Return the error of a field that violates a rule; `field` is its JSON path."""
    violation = FieldViolation(field=field, rule=rule, message=message)
    return ServiceError(reason, message, violations=[violation])


def _bounded(details: Sequence[ErrorDetail]) -> list[ErrorDetail]:
    kept: list[ErrorDetail] = []
    size = 0
    for detail in details[:_MAX_DETAILS]:
        size += len(detail.type) + len(detail.value)
        if size > _MAX_DETAIL_BYTES:
            break
        kept.append(detail)
    return kept


def _truncated_reason(reason: Reason) -> Reason:
    return Reason(reason[:_MAX_TEXT], reason.code)


def _truncated(violation: FieldViolation) -> FieldViolation:
    texts = (violation.field, violation.rule, violation.message)
    if max(map(len, texts)) <= _MAX_TEXT:
        return violation
    field, rule, message = (text[:_MAX_TEXT] for text in texts)
    return FieldViolation(field=field, rule=rule, message=message)


def shown_name(name: str) -> str:
    """Return a name that a client has sent, for an error: shortened, and printable."""
    short = name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..."
    if short.isprintable():
        return short
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


def internal() -> ServiceError:
    """Return INTERNAL, for an unexpected exception; the cause is logged and not sent."""
    return ServiceError(reasons.INTERNAL, "An internal error occurred.", outcome=Outcome.UNKNOWN)


def deadline_exceeded(outcome: int = Outcome.UNKNOWN) -> ServiceError:
    """Return DEADLINE_EXCEEDED."""
    return ServiceError(reasons.DEADLINE_EXCEEDED, "The deadline has passed.", outcome=outcome)


def version_mismatch() -> ServiceError:
    """Return FAILED_PRECONDITION, VERSION_MISMATCH: the expected version is not the current one."""
    return ServiceError(
        reasons.VERSION_MISMATCH,
        "The resource has changed since it was read. Read it again.",
    )


def require_version(current: int, expected: int) -> None:
    """Raise FAILED_PRECONDITION, VERSION_MISMATCH if `expected` is neither `current` nor 0."""
    if expected not in (0, current):
        raise version_mismatch()


def database_unavailable(outcome: int) -> ServiceError:
    """Return UNAVAILABLE: the database cannot be reached, or the connection was lost."""
    return ServiceError(
        reasons.DATABASE_UNAVAILABLE,
        "The database is unavailable.",
        retry_after=1,
        outcome=outcome,
    )


def database_busy() -> ServiceError:
    """Return RESOURCE_EXHAUSTED: no connection of the database's pool was free in time."""
    return ServiceError(
        reasons.DATABASE_BUSY,
        "Too many concurrent calls use the database.",
        retry_after=1,
    )


def database_conflict() -> ServiceError:
    """Return ABORTED: the database has rolled the work back, and may accept it if it runs again."""
    return ServiceError(
        reasons.DATABASE_CONFLICT,
        "Concurrent changes prevented the operation. Repeat the request.",
        retry_after=1,
    )
