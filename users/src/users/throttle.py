"""Failed tries make the next one wait, ever longer: by what is tried, known or not."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, select

from shared.errors import Code, ServiceError
from shared.postgres import Postgres
from shared.work import outside_work
from users.models import LoginFailures

__all__ = ["LoginThrottle"]

_FREE: Final = 5
_LONGEST_SECONDS: Final = 60
_FORGOTTEN: Final = timedelta(minutes=15)
_PURGED: Final = 100


class LoginThrottle:
    """Counts each try as a failure until it has succeeded: so tries at once count as well.

    It does so beside the current work: what is counted stays when the call fails.
    """

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def begin(self, name: str) -> None:
        """Count a try; RESOURCE_EXHAUSTED with LOGIN_THROTTLED if it comes too soon."""
        key, now = _hash(name), datetime.now(UTC)
        new = insert(LoginFailures).values(login_hash=key, count=0, last_at=now)
        locked = new.on_conflict_do_update(
            index_elements=["login_hash"], set_={"count": LoginFailures.count}
        )
        with outside_work():
            async with self._postgres.transaction() as session:
                failures = (await session.exec(locked.returning(LoginFailures))).scalar_one()
                if failures.last_at < now - _FORGOTTEN:
                    failures.count = 0
                _require(failures, now)
                failures.count, failures.last_at = failures.count + 1, now

    async def succeeded(self, name: str) -> None:
        """Forget the failures, and some of others that are long ago."""
        old = col(LoginFailures.last_at) < datetime.now(UTC) - _FORGOTTEN
        some = select(LoginFailures.login_hash).where(old).limit(_PURGED)
        mine = col(LoginFailures.login_hash) == _hash(name)
        with outside_work():
            async with self._postgres.transaction() as session:
                await session.exec(delete(LoginFailures).where(mine))
            async with self._postgres.transaction() as session:
                purged = some.with_for_update(skip_locked=True)
                await session.exec(
                    delete(LoginFailures).where(col(LoginFailures.login_hash).in_(purged))
                )


def _require(failures: LoginFailures, now: datetime) -> None:
    over = failures.count - _FREE
    delay = min(2 ** min(over, 10), _LONGEST_SECONDS) if over >= 0 else 0
    wait = (failures.last_at - now).total_seconds() + delay
    if wait > 0:
        raise ServiceError(
            Code.RESOURCE_EXHAUSTED,
            "LOGIN_THROTTLED",
            "Too many failures: wait before the next try.",
            retry_after=wait,
        )


def _hash(name: str) -> str:
    """Names what was tried: which may be a password by mistake."""
    return hashlib.sha256(name.lower().encode()).hexdigest()
