"""Accounts as the caller sees them."""

from collections.abc import Sequence

from postbus.users.v1 import Profile
from shared.context import Context
from shared.errors import Code, ServiceError
from users.follows import FollowRepository
from users.messages import to_profile
from users.models import User
from users.repository import UserRepository

__all__ = ["Profiles"]


class Profiles:
    """Finds accounts and shows them."""

    def __init__(self, users: UserRepository, follows: FollowRepository) -> None:
        self._users = users
        self._follows = follows

    async def named(self, name: str) -> User:
        """Return the account with this name or id; else NOT_FOUND.

        A name begins with a letter, an id (UUIDv7) with a digit until the year 7500.
        """
        if name[0].isdigit():
            found = await self._users.by_ids([name.lower()])
            user = found[0] if found else None
        else:
            user = await self._users.by_username(name)
        if user is None:
            raise ServiceError(Code.NOT_FOUND, "USER_NOT_FOUND", "There is no such user.")
        return user

    async def shown(self, users: Sequence[User], context: Context) -> list[Profile]:
        """Return profiles as the caller sees them."""
        followed: set[str] = set()
        if context.caller is not None:
            caller_id = context.caller.user_id
            others = [user.id for user in users if user.id != caller_id]  # no user follows itself
            if others:
                followed = await self._follows.followed_by(caller_id, others)
        return [to_profile(user, followed) for user in users]

    async def fresh(self, user: User, context: Context) -> Profile:
        """Return the profile with the counters as they are now."""
        await self._users.refresh(user)
        [profile] = await self.shown([user], context)
        return profile
