"""Author cards: what posts show of users, learned from events of the service `users`."""

from collections.abc import Iterable

from postbus.users.v1 import GetMeRequest, UserRegistered, UsersServiceStub
from posts.models import Author
from posts.repository import AuthorRepository
from shared.context import Context
from shared.messagebus import EventPattern, MessageBus, ServiceChannel
from shared.work import outside_work

__all__ = ["AuthorCards"]


class AuthorCards:
    """Keeps author cards, and asks `users` for the one that an event has not brought yet."""

    def __init__(self, authors: AuthorRepository, bus: MessageBus) -> None:
        self._authors = authors
        self._users = UsersServiceStub(ServiceChannel(bus))

    @EventPattern(UserRegistered)
    async def user_registered(self, event: UserRegistered, _context: Context) -> None:
        """Remember the new user."""
        await self._authors.put(Author(id=event.user_id, username=event.username))

    async def of_caller(self, context: Context) -> Author:
        """Return the caller's card."""
        known = await self._authors.by_ids([context.user_id])
        if context.user_id in known:
            return known[context.user_id]
        answer = await self._users.get_me(GetMeRequest())
        author = Author(id=answer.user.id, username=answer.user.username)
        with outside_work():  # all first posts of an author would wait for each other
            await self._authors.put(author)
        return author

    async def by_ids(self, author_ids: Iterable[str]) -> dict[str, Author]:
        """Return the cards that are known, by id."""
        return await self._authors.by_ids(author_ids)
