"""Author cards, learned from events of the service `users`."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from postbus.posts.v1 import Author as AuthorMessage
from postbus.users.v1 import (
    BatchGetUsersRequest,
    GetUserRequest,
    ListFollowedIdsRequest,
    UserProfileUpdated,
    UserRegistered,
    UsersServiceStub,
)
from posts.authors import AuthorRepository, author_message, card_of
from posts.card_cache import CardCache
from posts.follows import FollowRepository
from posts.models import Author
from shared.context import Context
from shared.errors import Code, ServiceError
from shared.identity import session_revoked
from shared.messagebus import EventPattern, MessageBus, ServiceChannel
from shared.work import outside_work

__all__ = ["AuthorCards"]

_AWAY = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED)
_PATIENCE = 1.0
"""Seconds for `users` to answer, before what is known here has to do."""


class AuthorCards:
    """Keeps author cards by events; asks `users` where an event may not have come yet.

    That is: for whoever has a token, and so may have followed or renamed a moment ago; and for a
    name that is not known here. While `users` is away, what is known has to do.
    """

    def __init__(
        self,
        authors: AuthorRepository,
        cache: CardCache,
        follows: FollowRepository,
        bus: MessageBus,
    ) -> None:
        self._authors = authors
        self._follows = follows
        self._users = UsersServiceStub(ServiceChannel(bus))
        self._cache = cache

    @EventPattern(UserRegistered)
    async def user_registered(self, event: UserRegistered, _context: Context) -> None:
        """Remember the new user."""
        name = event.username
        await self._authors.learn(Author(id=event.user_id, username=name, name_key=name.lower()))

    @EventPattern(UserProfileUpdated)
    async def user_profile_updated(self, event: UserProfileUpdated, _context: Context) -> None:
        """Remember what is new of the user."""
        card = card_of(event.user_id, event)
        await self._authors.learn(card)
        self._cache.keep([card])  # it may be one of long ago, which nobody heard of

    async def require_caller(self, context: Context) -> None:
        """Raise UNAUTHENTICATED if the caller's account is gone."""
        known = await self._authors.get(context.user_id)
        if known is None:
            await self.of_caller(context)
        elif known.deleted:
            raise session_revoked()

    async def of_caller(self, context: Context) -> Author:
        """Return the caller's card as it is now; UNAUTHENTICATED if the account is gone."""
        known = await self._authors.get(context.user_id)
        if known is not None and known.deleted:
            raise session_revoked()
        try:
            request = BatchGetUsersRequest(ids=[context.user_id])
            answer = await self._users.batch_get_users(request, timeout=_PATIENCE)
        except ServiceError as error:
            if known is None or error.code not in _AWAY:
                raise
            return known
        if not answer.profiles:
            raise session_revoked()
        [profile] = answer.profiles
        author = card_of(profile.id, profile)
        if known is None:
            # outside, for all first posts of an author would wait for each other
            with outside_work(), suppress(ServiceError):  # another call has, meanwhile
                await self._authors.learn(author)
        return author

    async def shown(self, ids: Iterable[str], context: Context) -> dict[str, AuthorMessage]:
        """Return authors as the caller sees them, by id; of those who are gone only the id."""
        wanted = sorted(set(ids))
        if not wanted:
            return {}
        if context.caller is None:
            return await self._known(wanted, frozenset())
        try:
            request = BatchGetUsersRequest(ids=wanted)
            answer = await self._users.batch_get_users(request, timeout=_PATIENCE)
        except ServiceError as error:
            if error.code not in _AWAY:
                raise
            followed = await self._follows.followed_by(context.caller.user_id, wanted)
            return await self._known(wanted, followed)
        profiles = {profile.id: profile for profile in answer.profiles}
        return {
            id_: author_message(
                id_, profiles.get(id_), followed=id_ in profiles and profiles[id_].followed
            )
            for id_ in wanted
        }

    async def _known(
        self, ids: Sequence[str], followed: Collection[str]
    ) -> dict[str, AuthorMessage]:
        cards = self._cache.of(ids)
        if unread := [id_ for id_ in ids if id_ not in cards]:
            read = await self._authors.by_ids(unread)
            self._cache.keep(read.values())
            cards |= read
        return {id_: author_message(id_, cards.get(id_), followed=id_ in followed) for id_ in ids}

    async def id_of(self, username: str) -> str | None:
        """Return the id of the user with this name; None if there is none."""
        found = await self._authors.by_names([username])
        if len(found) == 1:
            return found[0].id
        try:
            answer = await self._users.get_user(GetUserRequest(username=username))
        except ServiceError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise
        return answer.profile.id

    async def followed_by_caller(self, context: Context) -> list[str]:
        """Return the ids of all whom the caller follows."""
        try:
            answer = await self._users.list_followed_ids(
                ListFollowedIdsRequest(), timeout=_PATIENCE
            )
        except ServiceError as error:
            if error.code not in _AWAY:
                raise
            return await self._follows.ids_followed_by(context.user_id)
        return answer.ids
