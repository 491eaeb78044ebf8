"""Users in PostgreSQL."""

from sqlalchemy.exc import IntegrityError
from sqlmodel import func, or_, select

from shared.errors import Code, ServiceError
from shared.postgres import Postgres
from users.models import EMAIL_INDEX, USERNAME_INDEX, User

__all__ = ["UserRepository"]

_TAKEN = {
    USERNAME_INDEX: ("USERNAME_TAKEN", "The username is taken."),
    EMAIL_INDEX: ("EMAIL_TAKEN", "The email address is taken."),
}


class UserRepository:
    """Stores and finds users. Every method raises UNAVAILABLE while the database is away."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def add(self, user: User) -> None:
        """Store a new user; ALREADY_EXISTS with USERNAME_TAKEN or EMAIL_TAKEN."""
        try:
            async with self._postgres.transaction() as session:
                session.add(user)
        except IntegrityError as error:
            for index, (reason, message) in _TAKEN.items():
                if index in str(error.orig):
                    raise ServiceError(Code.ALREADY_EXISTS, reason, message) from None
            raise

    async def get(self, user_id: str) -> User | None:
        """Return the user with this id."""
        async with self._postgres.transaction() as session:
            return await session.get(User, user_id)

    async def by_username(self, username: str) -> User | None:
        """Return the user with this name, without regard to case."""
        query = select(User).where(func.lower(User.username) == username.lower())
        async with self._postgres.transaction() as session:
            return (await session.exec(query)).one_or_none()

    async def by_login(self, login: str) -> User | None:
        """Return the user with this name or email address, without regard to case."""
        name = login.lower()
        query = select(User).where(
            or_(func.lower(User.username) == name, func.lower(User.email) == name)
        )
        async with self._postgres.transaction() as session:
            return (await session.exec(query)).one_or_none()
