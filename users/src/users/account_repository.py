"""Accounts in PostgreSQL."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import ColumnElement, TextClause, text
from sqlmodel import col, delete, func, or_, select, update

from postbus import reasons
from shared.access_tokens import session_revoked
from shared.context import Context
from shared.data.pages import Page
from shared.data.postgres_sessions import Postgres
from shared.data.search_terms import words
from shared.errors import ServiceError
from shared.outbox.postgres_errors import DatabaseFaultError
from shared.outbox.unit_of_work import outside_unit_of_work
from users.models import EMAIL_INDEX, USERNAME_INDEX, Session, User

__all__ = ["COUNTED", "AccountRepository"]

COUNTED: Final = 50_000
"""Largest number of accounts that `count` returns."""
_FEW: Final = 2000
"""Up to this number of matches, a search uses the search index and sorts the result."""

_TAKEN = {
    USERNAME_INDEX: (reasons.USERNAME_TAKEN, "The username is taken."),
    EMAIL_INDEX: (reasons.EMAIL_TAKEN, "The email address is taken."),
}
_lower_name: ColumnElement[str] = func.lower(User.username)


class AccountRepository:
    """Stores and finds accounts. Every method raises UNAVAILABLE if the database is unavailable."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def add(self, user: User) -> None:
        """Store a new account; ALREADY_EXISTS with USERNAME_TAKEN or EMAIL_TAKEN."""
        with _unique_violations():
            async with self._postgres.transaction() as session:
                session.add(user)

    async def get_caller(self, context: Context, *, lock: bool = False) -> User:
        """Return the caller's account; `lock` locks its row until the unit of work ends.

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
        context.raise_revision(user.revision)
        return user

    async def get_many(self, ids: Sequence[str]) -> Sequence[User]:
        """Return the accounts with these ids, in no particular order."""
        async with self._postgres.reading() as session:
            return (await session.exec(select(User).where(col(User.id).in_(ids)))).all()

    async def find_by_username(self, username: str) -> User | None:
        """Return the account with this username, without regard to case."""
        query = select(User).where(_lower_name == username.lower())
        async with self._postgres.reading() as session:
            return (await session.exec(query)).one_or_none()

    async def find_by_login(self, login: str) -> User | None:
        """Return the account with this username or email address, without regard to case."""
        name = login.lower()
        query = select(User).where(or_(_lower_name == name, func.lower(User.email) == name))
        async with self._postgres.reading() as session:
            return (await session.exec(query)).one_or_none()

    async def require_free(self, username: str) -> None:
        """Raise ALREADY_EXISTS with USERNAME_TAKEN if the username is taken."""
        if await self.find_by_username(username) is not None:
            raise _taken(USERNAME_INDEX)

    async def replace_hash(self, user: User, password_hash: str) -> None:
        """Store another hash of the same password, unless the password was changed since.

        In a transaction of its own: the unit of work would lock the account, and concurrent
        log-ins of the user would wait for it.
        """
        unchanged = col(User.id) == user.id, col(User.password_hash) == user.password_hash
        replaced = update(User).where(*unchanged).values(password_hash=password_hash)
        with outside_unit_of_work():
            async with self._postgres.transaction() as session:
                await session.exec(replaced)

    async def search(self, q: str, page: Page) -> Sequence[User]:
        """Return accounts whose names contain, for each word of `q`, a word that starts with it.

        They are sorted by username. PostgreSQL cannot estimate the number of matches. For many
        matches the index on the username is scanned in order; for few the search index is used
        and the result sorted.
        """
        query, matches = select(User).order_by(_lower_name).limit(page.limit), _matches(q)
        if page.after:
            query = query.where(_lower_name > page.after[0])
        found = select(User.id).where(*matches)
        bounded_count = select(func.count()).select_from(found.limit(_FEW + 1).subquery())
        async with self._postgres.reading() as session:
            if matches and (await session.exec(bounded_count)).one() <= _FEW:
                few = found.cte("found").prefix_with("MATERIALIZED")
                query = query.join(few, col(User.id) == few.c.id)
            else:
                query = query.where(*matches)
            return (await session.exec(query)).all()

    async def count(self, q: str) -> int | None:
        """Return the number of accounts that `search` finds; None if it exceeds COUNTED."""
        found = select(User.id).where(*_matches(q)).limit(COUNTED + 1)
        query = select(func.count()).select_from(found.subquery())
        async with self._postgres.reading() as session:
            count = (await session.exec(query)).one()
        return count if count <= COUNTED else None

    async def update(self, user: User, changes: dict[str, Any]) -> None:
        """Set columns of a locked account; ALREADY_EXISTS as in `add`."""
        with _unique_violations():
            async with self._postgres.transaction() as session:
                session.add(user)
                for name, value in changes.items():
                    setattr(user, name, value)

    async def reload(self, user: User) -> None:
        """Read the columns of an account again, for its counters."""
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
    terms = " & ".join(f"'{word}':*" for word in words(q))
    if not terms:
        return [text("false")]
    return [text("users.words @@ to_tsquery('simple', :words)").bindparams(words=terms)]


@contextmanager
def _unique_violations() -> Iterator[None]:
    """Turn violations of the unique indexes into ALREADY_EXISTS."""
    try:
        yield
    except DatabaseFaultError as error:
        if error.constraint in _TAKEN:
            raise _taken(error.constraint) from None
        raise


def _taken(index: str) -> ServiceError:
    reason, message = _TAKEN[index]
    return ServiceError(reason, message)
