"""Waiting times after failed log-ins, by account, by address and by device."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, func, select

from shared.addresses import network_of
from shared.data.postgres_sessions import Postgres
from shared.errors import Code, ServiceError
from shared.outbox.unit_of_work import outside_unit_of_work
from users.models import LoginFailures

__all__ = ["Allowance", "Attempt", "LoginThrottle", "Streak"]

_FORGOTTEN_SECONDS: Final = 15 * 60.0
"""Time without a failure that ends a streak."""
_LONGEST_WAIT: Final = 60.0
"""Seconds that a streak makes the next try wait at most."""
_KEPT: Final = timedelta(hours=1)
"""After this time every count has faded to zero, and its row is purged."""
_MOST_ROWS: Final = 100_000
"""Rows that `purge` leaves."""
_PURGED: Final = 10_000
"""Rows that one transaction deletes."""


class Rule(Protocol):
    """How failures count. Times are in seconds."""

    def fade(self, count: float, since: float) -> float:
        """Return the rest of a count `since` seconds after its last failure."""

    def wait(self, count: float, since: float) -> float:
        """Return how long the next try has to wait; not above zero if it may be made."""

    def without_one(self, count: float) -> float:
        """Return the count once a try that was counted as a failure has succeeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streak:
    """Failures in a row: after `free` of them each makes the next try wait twice as long."""

    free: int

    def fade(self, count: float, since: float) -> float:
        """See Rule."""
        return 0 if since > _FORGOTTEN_SECONDS else count

    def wait(self, count: float, since: float) -> float:
        """See Rule."""
        over = int(count) - self.free
        return min(2.0 ** min(over, 10), _LONGEST_WAIT) - since if over >= 0 else 0

    def without_one(self, _count: float) -> float:
        """See Rule: a success ends the row."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """Failures over time: `free` at once, and one more whenever `seconds` have passed."""

    free: int
    seconds: float

    def fade(self, count: float, since: float) -> float:
        """See Rule."""
        return max(0.0, count - since / self.seconds)

    def wait(self, count: float, _since: float) -> float:
        """See Rule."""
        return (count + 1 - self.free) * self.seconds

    def without_one(self, count: float) -> float:
        """See Rule: failures with other accounts stay."""
        return max(0.0, count - 1)


_IN_A_ROW: Final = Streak(free=5)
_PER_ACCOUNT: Final = Allowance(free=100, seconds=36)
"""More than one address can fail (5 and one a minute), so one address can't use it up."""
_PER_ADDRESS_SECONDS: Final = 12.0
"""After each of which an address may fail once more."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The counts that a try belongs to: rules by key."""

    rules: Mapping[str, Rule]

    @classmethod
    def of_device(cls, user_id: str, device_id: bytes) -> "Attempt":
        """Return a log-in from a device that has logged in to the account before."""
        return cls({_key("device", user_id, device_id.hex()): _IN_A_ROW})

    @classmethod
    def of_password_change(cls, user_id: str) -> "Attempt":
        """Return a try of the current password by a user who is logged in."""
        return cls({_key("password", user_id): _IN_A_ROW})


class LoginThrottle:
    """Counts each try as a failure until it has succeeded: so tries at once count as well.

    It counts outside of the current work, so that the counts stay when the call fails. All times
    are the database's. `per_address` is the number of failures that one address has at once, 0 for
    no limit.
    """

    def __init__(self, postgres: Postgres, per_address: int) -> None:
        self._postgres = postgres
        self._per_address = per_address

    def of_stranger(self, account: str, address: str) -> Attempt:
        """Return a log-in from an unknown device; `account` is an id, or a name without account.

        `address` is the client's; empty if it is not known.
        """
        place = network_of(address)
        rules: dict[str, Rule] = {
            _key("pair", account, place): _IN_A_ROW,
            _key("account", account): _PER_ACCOUNT,
        }
        if place and self._per_address:
            allowance = Allowance(free=self._per_address, seconds=_PER_ADDRESS_SECONDS)
            rules[_key("address", place)] = allowance
        return Attempt(rules)

    async def begin(self, attempt: Attempt) -> None:
        """Count a try; RESOURCE_EXHAUSTED with LOGIN_THROTTLED if it comes too soon."""
        new = [
            {"login_hash": key, "count": 0.0, "last_at": func.now()}
            for key in sorted(attempt.rules)
        ]
        locked = (  # in the order of the keys, so that no two tries wait for each other
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
                _require(max(count.wait for count in counts))
                for count in counts:
                    count.add()

    async def succeeded(self, attempt: Attempt) -> None:
        """Undo the count of `begin`, and end the failures in a row."""
        mine = select(LoginFailures).where(col(LoginFailures.login_hash).in_(attempt.rules))
        with outside_unit_of_work():
            async with self._postgres.transaction() as session:
                locked = mine.order_by(col(LoginFailures.login_hash)).with_for_update()
                for row in (await session.exec(locked)).all():
                    row.count = attempt.rules[row.login_hash].without_one(row.count)

    async def purge(self) -> None:
        """Delete rows that have faded, and the oldest of more than 100,000."""
        last, now = col(LoginFailures.last_at), func.now()
        old = select(LoginFailures.login_hash).where(last < now - _KEPT).order_by(last)
        surplus = select(LoginFailures.login_hash).order_by(last.desc()).offset(_MOST_ROWS)
        for found in (old, surplus):
            some = found.limit(_PURGED).with_for_update(skip_locked=True)
            deleted = _PURGED
            while deleted == _PURGED:
                async with self._postgres.transaction() as session:
                    purged = delete(LoginFailures).where(col(LoginFailures.login_hash).in_(some))
                    deleted = (await session.exec(purged)).rowcount


class _Count:
    """A row, its rule, and how long ago its last failure was."""

    def __init__(self, row: LoginFailures, rule: Rule, now: datetime) -> None:
        since = max(0.0, (now - row.last_at).total_seconds())
        self._row, self._now = row, now
        self._count = rule.fade(row.count, since)
        self.wait = rule.wait(self._count, since)

    def add(self) -> None:
        self._row.count, self._row.last_at = self._count + 1, self._now


def _require(wait: float) -> None:
    if wait > 0:
        raise ServiceError(
            Code.RESOURCE_EXHAUSTED,
            "LOGIN_THROTTLED",
            "Too many failures: wait before the next try.",
            retry_after=wait,
        )


def _key(*parts: str) -> str:
    """Return a hash as the key of a count: a name may be a password entered by mistake."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
