"""Public profiles of accounts."""

from collections.abc import Sequence

from postbus import reasons
from postbus.users.v1 import Profile
from shared.context import Context
from shared.errors import ServiceError
from users.account_messages import to_profile
from users.account_repository import AccountRepository
from users.follow_repository import FollowRepository
from users.models import User

__all__ = ["Profiles"]


class Profiles:
    """Finds accounts, and builds their profiles for the caller."""

    def __init__(self, accounts: AccountRepository, follows: FollowRepository) -> None:
        self._accounts = accounts
        self._follows = follows

    async def find(self, name: str) -> User:
        """Return the account with this username or id; NOT_FOUND if there is none.

        A username begins with a letter. An id (UUIDv7) begins with its time, so with a digit until
        the year 7500.
        """
        if name[0].isdigit():
            found = await self._accounts.get_many([name.lower()])
            user = found[0] if found else None
        else:
            user = await self._accounts.find_by_username(name)
        if user is None:
            raise ServiceError(reasons.USER_NOT_FOUND, "There is no such user.")
        return user

    async def to_messages(self, users: Sequence[User], context: Context) -> list[Profile]:
        """Return the profiles, with `followed` set for the caller."""
        followed: set[str] = set()
        if context.caller is not None:
            caller_id = context.caller.user_id
            ids = [user.id for user in users if user.id != caller_id]  # no user follows itself
            if ids:
                followed = await self._follows.followed_among(caller_id, ids)
        return [to_profile(user, followed) for user in users]

    async def reloaded(self, user: User, context: Context) -> Profile:
        """Return the profile with the current counters, read from the database again."""
        await self._accounts.reload(user)
        [profile] = await self.to_messages([user], context)
        return profile
