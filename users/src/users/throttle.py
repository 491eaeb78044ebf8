"""Failed log-ins make the next one wait, ever longer: per account, known or not."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import case
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, delete

from shared.errors import Code, ServiceError
from shared.postgres import Postgres
from shared.work import outside_work
from users.models import LoginFailures

__all__ = ["LoginThrottle"]

_FREE: Final = 5
_LONGEST_SECONDS: Final = 60
_FORGOTTEN: Final = timedelta(minutes=15)


class LoginThrottle:
    """Counts failures beside the current work: they stay when the call fails."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def require(self, account: str) -> bool:
        """Raise RESOURCE_EXHAUSTED with LOGIN_THROTTLED while the account has to wait.

        Returns whether it has failed before.
        """
        with outside_work():
            async with self._postgres.transaction() as session:
                failures = await session.get(LoginFailures, _hash(account))
        if failures is None:
            return False
        wait = (failures.last_at + _delay(failures.count) - datetime.now(UTC)).total_seconds()
        if wait > 0:
            raise ServiceError(
                Code.RESOURCE_EXHAUSTED,
                "LOGIN_THROTTLED",
                "Too many failures: wait before the next try.",
                retry_after=wait,
            )
        return True

    async def failed(self, account: str) -> None:
        """Count a failure, and forget those that are long ago."""
        now = datetime.now(UTC)
        old = col(LoginFailures.last_at) < now - _FORGOTTEN
        counted = insert(LoginFailures).values(login_hash=_hash(account), count=1, last_at=now)
        more = case((old, 1), else_=col(LoginFailures.count) + 1)
        counted = counted.on_conflict_do_update(
            index_elements=["login_hash"], set_={"count": more, "last_at": now}
        )
        with outside_work():
            async with self._postgres.transaction() as session:
                await session.exec(counted)
                await session.exec(delete(LoginFailures).where(old))

    async def succeeded(self, account: str) -> None:
        """Forget the failures."""
        mine = col(LoginFailures.login_hash) == _hash(account)
        with outside_work():
            async with self._postgres.transaction() as session:
                await session.exec(delete(LoginFailures).where(mine))


def _delay(failures: int) -> timedelta:
    over = failures - _FREE
    return timedelta(seconds=min(2 ** min(over, 10), _LONGEST_SECONDS) if over >= 0 else 0)


def _hash(account: str) -> str:
    """Names the account, by id or by what was typed: which may be a password by mistake."""
    return hashlib.sha256(account.lower().encode()).hexdigest()
