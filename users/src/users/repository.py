"""Accounts in PostgreSQL."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import ColumnElement, TextClause, text
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, delete, func, or_, select, update

from shared.context import Context
from shared.data.pages import Page
from shared.data.postgres_sessions import Postgres
from shared.data.search_terms import words
from shared.errors import Code, ServiceError
from shared.identity import session_revoked
from shared.outbox.unit_of_work import outside_unit_of_work
from users.models import EMAIL_INDEX, USERNAME_INDEX, Session, User

__all__ = ["COUNTED", "UserRepository"]

COUNTED: Final = 50_000
"""Accounts that one total counts."""
_FEW = 2000

_TAKEN = {
    USERNAME_INDEX: ("USERNAME_TAKEN", "The username is taken."),
    EMAIL_INDEX: ("EMAIL_TAKEN", "The email address is taken."),
}
_lower_name: ColumnElement[str] = func.lower(User.username)


class UserRepository:
    """Stores and finds accounts. Every method raises UNAVAILABLE while the database is away."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def add(self, user: User) -> None:
        """Store a new account; ALREADY_EXISTS with USERNAME_TAKEN or EMAIL_TAKEN."""
        with _names_taken():
            async with self._postgres.transaction() as session:
                session.add(user)

    async def of_caller(self, context: Context, *, lock: bool = False) -> User:
        """Return the caller's account; `lock` keeps others from it until the current work ends.

        UNAUTHENTICATED with SESSION_REVOKED if the session of the caller's token has ended.
        """
        caller = context.require_caller()
        query = select(User).join(Session, col(Session.user_id) == User.id)
        query = query.where(User.id == caller.user_id, Session.id == caller.session_id)
        if lock:
            query = query.with_for_update(key_share=True, of=User)
        async with self._postgres.reading() as session:
            user = (await session.exec(query)).one_or_none()
        if user is None:
            raise session_revoked()
        context.learn_revision(user.revision)
        return user

    async def by_ids(self, ids: Sequence[str]) -> Sequence[User]:
        """Return the accounts with these ids, in no order."""
        async with self._postgres.reading() as session:
            return (await session.exec(select(User).where(col(User.id).in_(ids)))).all()

    async def by_username(self, username: str) -> User | None:
        """Return the account with this name, without regard to case."""
        query = select(User).where(_lower_name == username.lower())
        async with self._postgres.reading() as session:
            return (await session.exec(query)).one_or_none()

    async def by_login(self, login: str) -> User | None:
        """Return the account with this name or email address, without regard to case."""
        name = login.lower()
        query = select(User).where(or_(_lower_name == name, func.lower(User.email) == name))
        async with self._postgres.reading() as session:
            return (await session.exec(query)).one_or_none()

    async def require_free(self, username: str) -> None:
        """Raise ALREADY_EXISTS with USERNAME_TAKEN if the name is taken."""
        if await self.by_username(username) is not None:
            raise _taken(USERNAME_INDEX)

    async def renew_hash(self, user: User, password_hash: str) -> None:
        """Store another hash of the same password, unless the password was changed meanwhile.

        It has a transaction of its own: that of the work locks the account for other log-ins.
        """
        mine = col(User.id) == user.id, col(User.password_hash) == user.password_hash
        renewed = update(User).where(*mine).values(password_hash=password_hash)
        with outside_unit_of_work():
            async with self._postgres.transaction() as session:
                await session.exec(renewed)

    async def search(self, q: str, page: Page) -> Sequence[User]:
        """Return accounts whose names have words that begin like those of `q`, by username.

        PostgreSQL can't tell whether that is many. Of many the first are soon found in the order
        of the names; few are looked up by their words, and then sorted.
        """
        query, matches = select(User).order_by(_lower_name).limit(page.limit), _matches(q)
        if page.after:
            query = query.where(_lower_name > page.after[0])
        found = select(User.id).where(*matches)
        some = select(func.count()).select_from(found.limit(_FEW + 1).subquery())
        async with self._postgres.reading() as session:
            if matches and (await session.exec(some)).one() <= _FEW:
                few = found.cte("found").prefix_with("MATERIALIZED")
                query = query.join(few, col(User.id) == few.c.id)
            else:
                query = query.where(*matches)
            return (await session.exec(query)).all()

    async def count(self, q: str) -> int | None:
        """Count the accounts that `search` finds; None of more than COUNTED."""
        some = select(User.id).where(*_matches(q)).limit(COUNTED + 1)
        query = select(func.count()).select_from(some.subquery())
        async with self._postgres.reading() as session:
            count = (await session.exec(query)).one()
        return count if count <= COUNTED else None

    async def change(self, user: User, changes: dict[str, Any]) -> None:
        """Change an account that is locked; ALREADY_EXISTS as in `add`."""
        with _names_taken():
            async with self._postgres.transaction() as session:
                session.add(user)
                for name, value in changes.items():
                    setattr(user, name, value)

    async def refresh(self, user: User) -> None:
        """Read an account anew, for its counters."""
        async with self._postgres.reading() as session:
            session.add(user)
            await session.refresh(user)

    async def delete(self, user_id: str) -> None:
        """Delete an account with its sessions."""
        async with self._postgres.transaction() as session:
            await session.exec(delete(User).where(col(User.id) == user_id))


def _matches(q: str) -> list[TextClause | ColumnElement[bool]]:
    if not q.strip():
        return []
    wanted = " & ".join(f"'{word}':*" for word in words(q))
    if not wanted:
        return [text("false")]
    found = text("users.words @@ to_tsquery('simple', :words)")
    return [found.bindparams(words=wanted)]


@contextmanager
def _names_taken() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        for index in _TAKEN:
            if index in str(error.orig):
                raise _taken(index) from None
        raise


def _taken(index: str) -> ServiceError:
    reason, message = _TAKEN[index]
    return ServiceError(Code.ALREADY_EXISTS, reason, message)
