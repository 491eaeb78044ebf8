"""Sessions in PostgreSQL."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement
from sqlmodel import col, delete, func, or_, select, update

from shared.context import Context
from shared.data.pages import Page
from shared.data.postgres_sessions import Postgres
from shared.errors import Code, ServiceError
from users.models import Session, User
from users.refresh_tokens import RefreshToken

__all__ = ["PresentedToken", "SessionRepository"]

_LIFETIME: Final = timedelta(days=30)
"""Of a refresh token."""
_LONGEST_LIFE: Final = timedelta(days=180)
"""No session lives longer, however often it is refreshed (ASVS 7.3.2)."""
_ANSWER_KEPT: Final = timedelta(seconds=60)
"""Time in which a lost answer to a refresh can be had again."""
_RECENT: Final = timedelta(minutes=15)
"""Age of a session that may change the account; see `require_recent`."""
_MOST: Final = 100
"""Sessions of one user; the oldest make room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentedToken:
    """An open session as a call found it that presents one of its refresh tokens.

    All times are the database's: no clock of a caller or of another worker decides.
    """

    session: Session
    current: bool
    """Whether the token is the one that was given out last."""
    meanwhile: bool
    """Whether the call had begun when the current token was given out."""
    answer: bytes | None
    """The answer that gave out the current token, sealed; None if it is not to be repeated."""


class SessionRepository:
    """Stores and finds sessions. A session that has ended is not kept."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    @staticmethod
    def expiry(created_at: datetime | None = None) -> datetime:
        """Return when a session ends that gets its tokens now, and was opened at `created_at`."""
        now = datetime.now(UTC)
        return min(now + _LIFETIME, (created_at or now) + _LONGEST_LIFE)

    async def open(self, user: User, device: str, token: RefreshToken) -> bool:
        """Store a new session; False if the user is gone or the password was changed."""
        now = datetime.now(UTC)
        opened = Session(
            id=token.session_id,
            user_id=user.id,
            device=device,
            family_hash=token.family_hash,
            secret_hash=token.secret_hash,
            created_at=now,
            refreshed_at=now,
            expires_at=self.expiry(),
        )
        unchanged = select(User.id).where(User.id == user.id)
        unchanged = unchanged.where(User.password_version == user.password_version)
        async with self._postgres.transaction() as session:
            if (await session.exec(unchanged.with_for_update(read=True))).first() is None:
                return False
            session.add(opened)
        return True

    async def end_surplus(self, user_id: str) -> list[str]:
        """End what has expired, and the oldest of more than a hundred; return the ids."""
        mine, expired = col(Session.user_id) == user_id, col(Session.expires_at) < datetime.now(UTC)
        latest = select(Session.id).where(mine).order_by(col(Session.id).desc()).limit(_MOST)
        surplus = or_(expired, col(Session.id).not_in(latest))
        async with self._postgres.transaction() as session:
            ended = delete(Session).where(mine, surplus).returning(col(Session.id))
            return list((await session.exec(ended)).scalars())

    async def of_token(self, token: RefreshToken, began: float) -> PresentedToken | None:
        """Return what a call finds that presents `token`; None if no open session gave it out.

        `began` is when the call began, by `time.monotonic()`.
        """
        query = select(Session, func.clock_timestamp()).where(
            Session.id == token.session_id,
            Session.family_hash == token.family_hash,
            Session.expires_at > datetime.now(UTC),
        )
        async with self._postgres.reading() as session:
            await session.connection()  # which may take its time
            waited = timedelta(seconds=time.monotonic() - began)
            found = (await session.exec(query)).one_or_none()
        if found is None:
            return None
        opened, now = found
        repeatable = now - opened.refreshed_at <= _ANSWER_KEPT
        return PresentedToken(
            session=opened,
            current=opened.secret_hash == token.secret_hash,
            meanwhile=now - waited <= opened.refreshed_at,
            answer=opened.answer if repeatable else None,
        )

    async def rotate(
        self, old: RefreshToken, new: RefreshToken, *, expires_at: datetime, answer: bytes
    ) -> bool:
        """Replace the current token `old` by `new`; False if `old` is not the current one.

        Of calls at once one succeeds: the row is locked until it has committed. `answer` is sealed.
        """
        rotated = (
            update(Session)
            .where(
                col(Session.id) == old.session_id,
                col(Session.secret_hash) == old.secret_hash,
                col(Session.expires_at) > datetime.now(UTC),
            )
            .values(
                secret_hash=new.secret_hash,
                refreshed_at=func.clock_timestamp(),
                expires_at=expires_at,
                answer=answer,
            )
        )
        async with self._postgres.transaction() as session:
            return (await session.exec(rotated)).rowcount == 1

    async def purge_answers(self) -> None:
        """Delete the answers that may not be repeated any more."""
        old = col(Session.refreshed_at) < func.now() - _ANSWER_KEPT
        found = select(Session.id).where(col(Session.answer).is_not(None), old)
        found = found.with_for_update(skip_locked=True)
        purged = update(Session).where(col(Session.id).in_(found)).values(answer=None)
        async with self._postgres.transaction() as session:
            await session.exec(purged)

    async def require_recent(self, context: Context) -> None:
        """Raise PERMISSION_DENIED with RECENT_LOGIN_REQUIRED if the caller's log-in is long ago.

        So an access token that was stolen does not take the account over (ASVS 7.5.1).
        """
        caller = context.require_caller()
        recent = col(Session.created_at) > func.now() - _RECENT
        query = select(Session.id).where(Session.id == caller.session_id, recent)
        async with self._postgres.reading() as session:
            if (await session.exec(query)).first() is None:
                raise ServiceError(
                    Code.PERMISSION_DENIED,
                    "RECENT_LOGIN_REQUIRED",
                    "This needs a log-in of the last 15 minutes: log in again.",
                )

    async def of_user(self, user_id: str, page: Page) -> Sequence[Session]:
        """Return open sessions of a user, the latest first."""
        query = select(Session).where(*_open(user_id)).order_by(col(Session.id).desc())
        if page.after:
            query = query.where(Session.id < str(page.after[0]))
        async with self._postgres.reading() as session:
            return (await session.exec(query.limit(page.limit))).all()

    async def count(self, user_id: str) -> int:
        """Count the open sessions of a user."""
        query = select(func.count()).select_from(Session).where(*_open(user_id))
        async with self._postgres.reading() as session:
            return (await session.exec(query)).one()

    async def end(
        self, user_id: str, *, only: str | None = None, but: str | None = None
    ) -> list[str]:
        """End the sessions of a user: all, `only` one, or all `but` one; return their ids."""
        ended = delete(Session).where(col(Session.user_id) == user_id).returning(col(Session.id))
        if only is not None:
            ended = ended.where(col(Session.id) == only)
        if but is not None:
            ended = ended.where(col(Session.id) != but)
        async with self._postgres.transaction() as session:
            return list((await session.exec(ended)).scalars())


def _open(user_id: str) -> tuple[ColumnElement[bool], ...]:
    return col(Session.user_id) == user_id, col(Session.expires_at) > datetime.now(UTC)
