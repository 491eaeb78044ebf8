"""Sessions in PostgreSQL."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement
from sqlmodel import col, delete, func, or_, select, update

from postbus import reasons
from shared.context import Context
from shared.data.pages import Page
from shared.data.postgres_sessions import Postgres
from shared.errors import ServiceError
from users.models import Session, User
from users.refresh_tokens import RefreshToken

__all__ = ["PresentedToken", "SessionRepository"]

_LIFETIME: Final = timedelta(days=30)
"""Lifetime of a refresh token."""
_MAX_LIFETIME: Final = timedelta(days=180)
"""Lifetime of a session, however often it is refreshed (ASVS 7.3.2)."""
_RESPONSE_KEPT: Final = timedelta(seconds=60)
"""Time for which a repeated refresh gets its response again."""
_RECENT: Final = timedelta(minutes=15)
"""Maximum age of a session for sensitive changes; see `require_recent`."""
_MAX_SESSIONS: Final = 100
"""Maximum number of sessions of one user; the oldest ones beyond it are deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentedToken:
    """The open session of a refresh token that a call presents, and the state of the token.

    All comparisons use the clock of the database, because the clocks of callers and workers differ.
    """

    session: Session
    current: bool
    """Whether the token is the current one of the session; otherwise it was exchanged."""
    exchanged_during_call: bool
    """Whether the current token was issued after the call had begun."""
    sealed_response: bytes | None
    """The response that issued the current token; None after 60 seconds."""


class SessionRepository:
    """Stores and finds open sessions. A session that has ended is deleted."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    @staticmethod
    def expiry(created_at: datetime | None = None) -> datetime:
        """Return the expiry of a refresh token issued now, in a session opened at `created_at`.

        It is shown to the client; the stored one is by the clock of the database.
        """
        now = datetime.now(UTC)
        return min(now + _LIFETIME, (created_at or now) + _MAX_LIFETIME)

    async def open(self, user: User, device: str, token: RefreshToken) -> bool:
        """Store a new session; False if the user was deleted or the password was changed."""
        opened = Session(
            id=token.session_id,
            user_id=user.id,
            device=device,
            family_hash=token.family_hash,
            secret_hash=token.secret_hash,
            created_at=func.now(),  # type: ignore[arg-type]  # the clock of the database
            refreshed_at=func.now(),  # type: ignore[arg-type]  # the clock of the database
            expires_at=func.now() + _LIFETIME,  # type: ignore[arg-type]  # the clock of the database
        )
        unchanged = select(User.id).where(User.id == user.id)
        unchanged = unchanged.where(User.password_version == user.password_version)
        async with self._postgres.transaction() as session:
            if (await session.exec(unchanged.with_for_update(read=True))).first() is None:
                return False
            session.add(opened)
        return True

    async def find_by_token(self, token: RefreshToken, began: float) -> PresentedToken | None:
        """Return the open session of the token's family, whether the token is current or exchanged.

        None if there is no such session. `began` is the `time.monotonic()` at which the call began.
        """
        query = select(Session, func.clock_timestamp()).where(
            Session.id == token.session_id,
            Session.family_hash == token.family_hash,
            col(Session.expires_at) > func.now(),
        )
        async with self._postgres.reading() as session:
            await session.connection()  # may wait for a free connection
            waited = timedelta(seconds=time.monotonic() - began)
            found = (await session.exec(query)).one_or_none()
        if found is None:
            return None
        opened, now = found
        repeatable = now - opened.refreshed_at <= _RESPONSE_KEPT
        return PresentedToken(
            session=opened,
            current=opened.secret_hash == token.secret_hash,
            exchanged_during_call=now - waited <= opened.refreshed_at,
            sealed_response=opened.answer if repeatable else None,
        )

    async def rotate(self, old: RefreshToken, new: RefreshToken, *, sealed_response: bytes) -> bool:
        """Replace the current token `old` by `new`; False if `old` is not the current one.

        Of concurrent calls one succeeds: the row is locked until its transaction commits.
        """
        rotated = (
            update(Session)
            .where(
                col(Session.id) == old.session_id,
                col(Session.secret_hash) == old.secret_hash,
                col(Session.expires_at) > func.now(),
            )
            .values(
                secret_hash=new.secret_hash,
                refreshed_at=func.clock_timestamp(),
                expires_at=func.least(
                    func.now() + _LIFETIME, col(Session.created_at) + _MAX_LIFETIME
                ),
                answer=sealed_response,
            )
        )
        async with self._postgres.transaction() as session:
            return (await session.exec(rotated)).rowcount == 1

    async def purge_responses(self) -> None:
        """Delete the sealed responses that can no longer be repeated."""
        old = col(Session.refreshed_at) < func.now() - _RESPONSE_KEPT
        found = select(Session.id).where(col(Session.answer).is_not(None), old)
        found = found.with_for_update(skip_locked=True)
        purged = update(Session).where(col(Session.id).in_(found)).values(answer=None)
        async with self._postgres.transaction() as session:
            await session.exec(purged)

    async def require_recent(self, context: Context) -> None:
        """Raise PERMISSION_DENIED with RECENT_LOGIN_REQUIRED if the caller's log-in is too old.

        A stolen access token is then not enough to take over the account (ASVS 7.5.1).
        """
        caller = context.require_caller()
        recent = col(Session.created_at) > func.now() - _RECENT
        query = select(Session.id).where(Session.id == caller.session_id, recent)
        async with self._postgres.reading() as session:
            if (await session.exec(query)).first() is None:
                raise ServiceError(
                    reasons.RECENT_LOGIN_REQUIRED,
                    "The call needs a log-in within the last 15 minutes. Log in again.",
                )

    async def list_open(self, user_id: str, page: Page) -> Sequence[Session]:
        """Return open sessions of a user, the latest first."""
        query = select(Session).where(*_open(user_id)).order_by(col(Session.id).desc())
        if page.after:
            query = query.where(Session.id < str(page.after[0]))
        async with self._postgres.reading() as session:
            return (await session.exec(query.limit(page.limit))).all()

    async def count_open(self, user_id: str) -> int:
        """Return the number of open sessions of a user."""
        query = select(func.count()).select_from(Session).where(*_open(user_id))
        async with self._postgres.reading() as session:
            return (await session.exec(query)).one()

    async def delete(
        self, user_id: str, *, only: str | None = None, keep: str | None = None
    ) -> list[str]:
        """Delete the sessions of a user: all, `only` one, or all but `keep`. Return their ids."""
        condition = col(Session.user_id) == user_id
        if only is not None:
            condition &= col(Session.id) == only
        if keep is not None:
            condition &= col(Session.id) != keep
        return await self._delete(condition)

    async def delete_surplus(self, user_id: str) -> list[str]:
        """Delete the expired sessions of the user, and the oldest ones beyond a hundred.

        Return the deleted ids.
        """
        own, expired = col(Session.user_id) == user_id, col(Session.expires_at) < func.now()
        latest = select(Session.id).where(own).order_by(col(Session.id).desc()).limit(_MAX_SESSIONS)
        return await self._delete(own & or_(expired, col(Session.id).not_in(latest)))

    async def _delete(self, condition: ColumnElement[bool]) -> list[str]:
        deleted = delete(Session).where(condition).returning(col(Session.id))
        async with self._postgres.transaction() as session:
            return list((await session.exec(deleted)).scalars())


def _open(user_id: str) -> tuple[ColumnElement[bool], ...]:
    return col(Session.user_id) == user_id, col(Session.expires_at) > func.now()
