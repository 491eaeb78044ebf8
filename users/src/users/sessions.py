"""Sessions in PostgreSQL, and their refresh tokens."""

import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self
from uuid import UUID

from sqlalchemy import ColumnElement
from sqlmodel import col, delete, func, or_, select, update
from uuid_utils.compat import uuid7

from shared.pages import Page
from shared.postgres import Postgres
from users.models import Session, User

__all__ = ["RefreshToken", "SessionRepository"]

_LIFETIME: Final = timedelta(days=30)
_MOST: Final = 100
"""Sessions of one user; the oldest make room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshToken:
    """A refresh token: its session, what all of the session have in common, what this one has."""

    session_id: str
    family: bytes
    secret: bytes

    @classmethod
    def new(cls) -> Self:
        """Return the first token of a new session."""
        return cls(
            session_id=str(uuid7()), family=secrets.token_bytes(16), secret=secrets.token_bytes(32)
        )

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Return the token that a client has sent; None if it is not even one."""
        try:
            data = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
            session_id = str(UUID(bytes=data[:16]))
        except (binascii.Error, ValueError):
            return None
        return cls(session_id=session_id, family=data[16:32], secret=data[32:])

    def __str__(self) -> str:
        data = UUID(self.session_id).bytes + self.family + self.secret
        return base64.urlsafe_b64encode(data).decode()

    def next(self) -> "RefreshToken":
        """Return the token that takes the place of this one."""
        return RefreshToken(
            session_id=self.session_id, family=self.family, secret=secrets.token_bytes(32)
        )

    @property
    def family_hash(self) -> bytes:
        """What is stored of the common part; it is random, so that no salt is needed."""
        return hashlib.sha256(self.family).digest()

    @property
    def secret_hash(self) -> bytes:
        """What is stored of the secret."""
        return hashlib.sha256(self.secret).digest()


class SessionRepository:
    """Stores and finds sessions. A session that has ended is not kept."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    @staticmethod
    def expiry() -> datetime:
        """Return when a session ends that gets its tokens now."""
        return datetime.now(UTC) + _LIFETIME

    async def open(self, user: User, device: str, token: RefreshToken) -> bool:
        """Store a new session; False if the user is gone or the password is another by now."""
        now = datetime.now(UTC)
        opened = Session(
            id=token.session_id,
            user_id=user.id,
            device=device,
            family_hash=token.family_hash,
            secret_hash=token.secret_hash,
            created_at=now,
            refreshed_at=now,
            expires_at=now + _LIFETIME,
        )
        unchanged = select(User.id).where(User.id == user.id)
        unchanged = unchanged.where(User.password_hash == user.password_hash)
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

    async def of_token(self, token: RefreshToken) -> Session | None:
        """Return the open session that gave this token out, now or before."""
        query = select(Session).where(
            Session.id == token.session_id,
            Session.family_hash == token.family_hash,
            Session.expires_at > datetime.now(UTC),
        )
        async with self._postgres.reading() as session:
            return (await session.exec(query)).one_or_none()

    async def rotate(self, old: RefreshToken, new: RefreshToken) -> bool:
        """Put a new token in the place of an old one; False if that is not the current one."""
        now = datetime.now(UTC)
        rotated = (
            update(Session)
            .where(
                col(Session.id) == old.session_id,
                col(Session.secret_hash) == old.secret_hash,
                col(Session.expires_at) > now,
            )
            .values(secret_hash=new.secret_hash, refreshed_at=now, expires_at=now + _LIFETIME)
        )
        async with self._postgres.transaction() as session:
            return (await session.exec(rotated)).rowcount == 1

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
