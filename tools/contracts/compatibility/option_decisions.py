"""The options of postbus.options.v1: the audiences that each breaks if it is removed or changed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Final

from tools.contracts.compatibility.findings import (
    Audience,
    Breaks,
    Use,
    consumers,
    every_use,
    json,
    rest,
)
from tools.contracts.compatibility.kinds import Kind

__all__ = ["DECISIONS", "MEANING", "UNSET", "Decision", "Effect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """The uses that a changed option breaks; a notice breaks none."""

    kind: Kind
    breaks: Breaks = every_use
    notice: bool = False


Decision = Callable[[Any, Any], Iterator[Effect]]
"""Yields the effects of a changed option from its values before and after; unset is None."""


_PERIODS: Final = {"second": 86_400, "minute": 1_440, "hour": 24, "day": 1}
"""The number of each period in a day."""


def _decide(
    *,
    removed: Effect | None = None,
    added: Effect | None = None,
    changed: Effect | None = None,
) -> Decision:
    """Return a decision by the presence of the option; None is no effect."""

    def decision(before: Any, after: Any) -> Iterator[Effect]:
        effect = added if before is None else removed if after is None else changed
        if effect:
            yield effect

    return decision


def _access(before: Any, after: Any) -> Iterator[Effect]:
    """A narrower access excludes clients; workers may call internal methods."""
    if _rank(after) > _rank(before):
        yield Effect(
            kind=Kind.ACCESS_TIGHTENED, breaks=lambda use: use.audience is not Audience.WORKER
        )
    else:
        yield Effect(kind=Kind.ACCESS_LOOSENED, notice=True)
    if after == "ACCESS_USER":  # workers that call without a user have no token
        yield Effect(kind=Kind.TOKEN_REQUIRED, breaks=_is_worker)


def _callers(before: Any, after: Any) -> Iterator[Effect]:
    """A list of callers refuses the services that are not in it any more."""
    if after and (not before or set(before) - set(after)):
        yield Effect(kind=Kind.CALLERS_RESTRICTED, breaks=_is_worker, notice=not before)


def _event_access(before: Any, after: Any) -> Iterator[Effect]:
    """A narrower access excludes clients; services receive every event."""
    if _rank(after) > _rank(before):
        yield Effect(kind=Kind.EVENT_ACCESS_TIGHTENED, breaks=_is_subscriber)
    else:
        yield Effect(kind=Kind.EVENT_ACCESS_LOOSENED, notice=True)


def _rank(access: str | None) -> int:
    """Return the position of an access level from wide to narrow; 0 if it is not stated."""
    return (None, "ACCESS_PUBLIC", "ACCESS_USER", "ACCESS_INTERNAL").index(access)


def _is_worker(use: Use) -> bool:
    return use.audience is Audience.WORKER


def _is_subscriber(use: Use) -> bool:
    return use.audience is Audience.WEBSOCKET


def _timeout(before: Any, after: Any) -> Iterator[Effect]:
    """A lower default affects callers that set no budget."""
    if after < before:
        yield Effect(kind=Kind.TIMEOUT_LOWERED, notice=True)


def _rate(before: Any, after: Any) -> Iterator[Effect]:
    """A lower rate refuses clients that made more calls; workers have none."""
    if _per_day(after) < _per_day(before):
        yield Effect(kind=Kind.RATE_LOWERED, breaks=json, notice=True)


def _per_day(rate: str | None) -> float:
    if rate is None:
        return inf
    calls, _, time = rate.partition("/")
    return int(calls) * _PERIODS[time]


def _event_version(before: Any, after: Any) -> Iterator[Effect]:
    """A version must not be used again with another meaning; a higher one asks for a review."""
    if after < before:
        yield Effect(kind=Kind.EVENT_VERSION_LOWERED)
    else:
        yield Effect(kind=Kind.EVENT_VERSION_RAISED, notice=True)


def _reasons(before: Any, after: Any) -> Iterator[Effect]:
    """Clients react to a reason, so another one in its place breaks them; alone it is a notice."""
    lost, new = set(before or ()) - set(after or ()), set(after or ()) - set(before or ())
    if lost and new:
        yield Effect(kind=Kind.REASONS_REPLACED)
    elif lost:
        yield Effect(kind=Kind.REASON_WITHDRAWN, notice=True)
    elif new:
        yield Effect(kind=Kind.REASON_ADDED, notice=True)


def _elsewhere(_before: Any, _after: Any) -> Iterator[Effect]:
    """The rules on routes and on reasons compare the status: there is one if it is unset."""
    yield from ()


_METHOD: Final = "postbus.options.v1.MethodRules."
_EVENT: Final = "postbus.options.v1.EventRules."
_REASON: Final = "postbus.options.v1.ReasonRules."
_SCOPE: Final = Effect(kind=Kind.REASON_SCOPE_CHANGED, notice=True)
MEANING: Final[Mapping[str, Decision]] = {
    f"{_EVENT}subject": _decide(
        removed=Effect(kind=Kind.SUBJECT_CHANGED),
        changed=Effect(kind=Kind.SUBJECT_CHANGED),
    ),
    f"{_EVENT}aggregate_version": _decide(
        removed=Effect(kind=Kind.AGGREGATE_VERSION_REMOVED, breaks=consumers),
        changed=Effect(kind=Kind.AGGREGATE_VERSION_CHANGED, breaks=consumers),
    ),
    f"{_EVENT}ended_sessions": _decide(
        removed=Effect(kind=Kind.ENDED_SESSIONS_REMOVED, breaks=consumers),
        added=Effect(kind=Kind.ENDED_SESSIONS_ADDED, breaks=consumers, notice=True),
        changed=Effect(kind=Kind.ENDED_SESSIONS_CHANGED, breaks=consumers),
    ),
}
"""The options that give an event its meaning: to break them asks for a higher version, too."""

DECISIONS: Final[Mapping[str, Decision]] = {
    f"{_METHOD}access": _access,
    f"{_METHOD}callers": _callers,
    f"{_METHOD}default_timeout_ms": _timeout,
    f"{_METHOD}http_status": _elsewhere,
    f"{_METHOD}secret_response": _decide(
        removed=Effect(kind=Kind.SECRET_REMOVED, notice=True),
        added=Effect(kind=Kind.SECRET_ADDED),
    ),
    f"{_METHOD}version": _decide(
        removed=Effect(kind=Kind.VERSION_REMOVED, breaks=rest),
        changed=Effect(kind=Kind.VERSION_CHANGED, breaks=rest),
    ),
    f"{_METHOD}expected_version": _decide(
        removed=Effect(kind=Kind.EXPECTED_VERSION_REMOVED, breaks=rest),
        changed=Effect(kind=Kind.EXPECTED_VERSION_CHANGED, breaks=rest),
    ),
    f"{_METHOD}ends_session": _decide(
        removed=Effect(kind=Kind.ENDS_SESSION_REMOVED),
        added=Effect(kind=Kind.ENDS_SESSION_ADDED, notice=True),
    ),
    f"{_METHOD}rate_limit": _rate,
    f"{_METHOD}reasons": _reasons,
    f"{_REASON}code": _decide(
        removed=Effect(kind=Kind.REASON_CODE_CHANGED),
        changed=Effect(kind=Kind.REASON_CODE_CHANGED),
    ),
    f"{_REASON}scope": _decide(removed=_SCOPE, added=_SCOPE, changed=_SCOPE),
    f"{_REASON}http_status": _elsewhere,
    **MEANING,
    f"{_EVENT}version": _event_version,
    f"{_EVENT}access": _event_access,
    f"{_EVENT}recipient": _decide(
        changed=Effect(kind=Kind.RECIPIENT_CHANGED, breaks=_is_subscriber)
    ),
}
"""The decision for each option, by the full name of its field."""
UNSET: Final[Mapping[str, Any]] = {
    f"{_METHOD}default_timeout_ms": 5000,
    f"{_EVENT}version": 1,
    f"{_EVENT}access": "ACCESS_INTERNAL",
}
"""The values that count if an option is unset."""
