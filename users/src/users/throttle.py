"""Limits on failed log-ins, counted per account, client address and device.

A name that no account has is counted in the same way, so that the response does not reveal it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, func, select

from postbus import reasons
from shared.addresses import network_of
from shared.data.postgres_sessions import Postgres
from shared.errors import ServiceError
from shared.outbox.unit_of_work import outside_unit_of_work
from users.models import LoginFailures

__all__ = ["Allowance", "Attempt", "LoginThrottle", "Streak"]

_STREAK_SECONDS: Final = 15 * 60.0
"""Seconds without a failure after which a streak ends."""
_MAX_WAIT: Final = 60.0
"""Maximum seconds of back-off after a streak."""
_KEPT: Final = timedelta(hours=1)
"""Time after which every count has decreased to zero, and its row is purged."""
_MAX_ROWS: Final = 100_000
"""Maximum number of rows that `purge` leaves."""
_PURGE_BATCH: Final = 10_000
"""Rows that one transaction deletes."""


class Rule(Protocol):
    """Turns a count of failures into a back-off. Times are in seconds."""

    def decay(self, count: float, since: float) -> float:
        """Return the count that is left `since` seconds after its last failure."""

    def wait(self, count: float, since: float) -> float:
        """Return the seconds until the next attempt is allowed; 0 or less if it is allowed now."""

    def after_success(self, count: float) -> float:
        """Return the count after the success of an attempt, which was counted as a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streak:
    """Consecutive failures. After `free` of them, each failure doubles the back-off."""

    free: int

    def decay(self, count: float, since: float) -> float:
        """See Rule."""
        return 0 if since > _STREAK_SECONDS else count

    def wait(self, count: float, since: float) -> float:
        """See Rule."""
        over = int(count) - self.free
        return min(2.0 ** min(over, 10), _MAX_WAIT) - since if over >= 0 else 0

    def after_success(self, _count: float) -> float:
        """See Rule. A success ends the streak."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """Failures over time (a leaky bucket): a burst of `free`, and one more per `seconds`."""

    free: int
    seconds: float

    def decay(self, count: float, since: float) -> float:
        """See Rule."""
        return max(0.0, count - since / self.seconds)

    def wait(self, count: float, _since: float) -> float:
        """See Rule."""
        return (count + 1 - self.free) * self.seconds

    def after_success(self, count: float) -> float:
        """See Rule. Only the attempt itself is removed: the rest may concern other accounts."""
        return max(0.0, count - 1)


_STREAK: Final = Streak(free=5)
_PER_ACCOUNT: Final = Allowance(free=100, seconds=36)
"""One address alone cannot use it up: it can fail 5 times and then once per minute."""
_PER_ADDRESS_SECONDS: Final = 12.0
"""Seconds after which one more failure of an address is allowed."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The rules that apply to an attempt, by the key of their count."""

    rules: Mapping[str, Rule]

    @classmethod
    def of_device(cls, user_id: str, device_id: bytes) -> "Attempt":
        """Return a log-in with a valid device token."""
        return cls({_key("device", user_id, device_id.hex()): _STREAK})

    @classmethod
    def of_password_change(cls, user_id: str) -> "Attempt":
        """Return a password change, which verifies the current password."""
        return cls({_key("password", user_id): _STREAK})


class LoginThrottle:
    """Counts every attempt as a failure until it succeeds, so that concurrent attempts count.

    The counts are stored outside of the unit of work and so survive a failed call. All times are
    from the clock of the database. `per_address` is the number of failures that one address may
    make in a burst; 0: no limit.
    """

    def __init__(self, postgres: Postgres, per_address: int) -> None:
        self._postgres = postgres
        self._per_address = per_address

    def of_unknown_device(self, account: str, address: str) -> Attempt:
        """Return a log-in without a valid device token.

        `account` is an id, or a name without an account; `address` is the client's, or empty.
        """
        network = network_of(address)
        rules: dict[str, Rule] = {
            _key("pair", account, network): _STREAK,
            _key("account", account): _PER_ACCOUNT,
        }
        if network and self._per_address:
            allowance = Allowance(free=self._per_address, seconds=_PER_ADDRESS_SECONDS)
            rules[_key("address", network)] = allowance
        return Attempt(rules)

    async def record_attempt(self, attempt: Attempt) -> None:
        """Count the attempt as a failure.

        RESOURCE_EXHAUSTED with LOGIN_THROTTLED if it comes before the end of the back-off.
        """
        new = [
            {"login_hash": key, "count": 0.0, "last_at": func.now()}
            for key in sorted(attempt.rules)
        ]
        locked = (  # in the order of the keys, which prevents deadlocks
            insert(LoginFailures)
            .values(new)
            .on_conflict_do_update(
                index_elements=["login_hash"], set_={"count": LoginFailures.count}
            )
            .returning(LoginFailures, func.clock_timestamp())
        )
        with outside_unit_of_work():
            async with self._postgres.transaction() as session:
                rows = (await session.exec(locked)).all()
                counts = [_Count(row, attempt.rules[row.login_hash], now) for row, now in rows]
                _require_no_wait(max(count.wait for count in counts))
                for count in counts:
                    count.add()

    async def reset(self, attempt: Attempt) -> None:
        """Remove the successful attempt from the counts, and end its streaks."""
        counted = select(LoginFailures).where(col(LoginFailures.login_hash).in_(attempt.rules))
        with outside_unit_of_work():
            async with self._postgres.transaction() as session:
                locked = counted.order_by(col(LoginFailures.login_hash)).with_for_update()
                for row in (await session.exec(locked)).all():
                    row.count = attempt.rules[row.login_hash].after_success(row.count)

    async def purge(self) -> None:
        """Delete the rows with a count of zero, and the oldest ones beyond 100,000."""
        last, now = col(LoginFailures.last_at), func.now()
        old = select(LoginFailures.login_hash).where(last < now - _KEPT).order_by(last)
        surplus = select(LoginFailures.login_hash).order_by(last.desc()).offset(_MAX_ROWS)
        for found in (old, surplus):
            batch = found.limit(_PURGE_BATCH).with_for_update(skip_locked=True)
            deleted = _PURGE_BATCH
            while deleted == _PURGE_BATCH:
                async with self._postgres.transaction() as session:
                    purged = delete(LoginFailures).where(col(LoginFailures.login_hash).in_(batch))
                    deleted = (await session.exec(purged)).rowcount


class _Count:
    """A locked row with its rule; `wait` is the back-off in seconds."""

    def __init__(self, row: LoginFailures, rule: Rule, now: datetime) -> None:
        since = max(0.0, (now - row.last_at).total_seconds())
        self._row, self._now = row, now
        self._count = rule.decay(row.count, since)
        self.wait = rule.wait(self._count, since)

    def add(self) -> None:
        self._row.count, self._row.last_at = self._count + 1, self._now


def _require_no_wait(wait: float) -> None:
    if wait > 0:
        raise ServiceError(
            reasons.LOGIN_THROTTLED,
            "Too many failed attempts. Wait before the next one.",
            retry_after=wait,
        )


def _key(*parts: str) -> str:
    """Return the key of a count. It is hashed, because a login may be a mistyped password."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
