"""Author cards as callers see them: from the copy in `posts`, or from `users`."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from postbus.posts.v1 import Author as AuthorMessage
from postbus.users.v1 import (
    BatchGetUsersRequest,
    GetUserRequest,
    ListFollowedIdsRequest,
    Profile,
    UserProfileUpdated,
    UserRegistered,
    UsersServiceStub,
)
from posts.authors import AuthorRepository, author_message, card_of
from posts.caller_state import CallerState, CallerStates, PostState
from posts.card_cache import CardCache
from posts.follows import FollowRepository
from posts.models import Author
from posts.resync import Resync
from shared.bus import EventPattern
from shared.context import Context
from shared.errors import Code, ServiceError
from shared.identity import session_revoked
from shared.outbox.unit_of_work import outside_unit_of_work

__all__ = ["AuthorCards", "Seen"]

_UNAVAILABLE: Final = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED)
_SECONDS: Final = 1.0
"""Timeout of calls to `users`; then the copy is used."""

Cards = Mapping[str, Author | Profile]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Authors and posts as the caller sees them."""

    authors: Mapping[str, AuthorMessage]
    """By id; of deleted users only the id is set."""
    liked: Collection[str] = ()
    """Ids of the posts that the caller likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorCards:
    """Keeps author cards by events, and shows them.

    A caller is answered from the copy if it has all changes of the caller that the gateway knows
    of, see `posts.revisions`. Else, and for users that the copy lacks, `users` is called. While
    `users` is unavailable, the copy is used.
    """

    authors: AuthorRepository
    cache: CardCache
    follows: FollowRepository
    states: CallerStates
    users: UsersServiceStub
    resync: Resync

    @EventPattern(UserRegistered)
    async def user_registered(self, event: UserRegistered, _context: Context) -> None:
        """Store the card of the new user."""
        name = event.username
        await self.authors.learn(Author(id=event.user_id, username=name, name_key=name.lower()))

    @EventPattern(UserProfileUpdated, late=True)
    async def user_profile_updated(self, event: UserProfileUpdated, context: Context) -> None:
        """Store the changed card and its revision."""
        if not context.late:
            card = card_of(event.user_id, event)
            await self.authors.learn(card)
            self.cache.keep([card])  # which drops it if the cache has a later one
        await self.authors.revise(event.user_id, event.revision)

    async def require_caller(self, context: Context) -> None:
        """Raise UNAUTHENTICATED if the caller's account is deleted."""
        await self.of_caller(context)

    async def of_caller(self, context: Context) -> Author:
        """Return the caller's card as it is now; UNAUTHENTICATED if the account is deleted."""
        state = await self._state(context)
        if state.author is not None and self._is_current(state.author, context):
            return state.author
        try:
            profiles = await self._ask([context.user_id], state, context)
        except ServiceError as error:
            if state.author is None or error.code not in _UNAVAILABLE:
                raise
            return state.author
        if not profiles:
            raise session_revoked()
        author = card_of(context.user_id, profiles[context.user_id])
        if state.author is None:
            # outside, for all first posts of an author would wait for each other
            with outside_unit_of_work(), suppress(ServiceError):  # another call has, meanwhile
                await self.authors.learn(author)
        return author

    async def seen(
        self,
        ids: Iterable[str],
        context: Context,
        *,
        posts: Iterable[str] = (),
        state: PostState | None = None,
    ) -> Seen:
        """Return authors as the caller sees them, and which of `posts` the caller likes.

        `state` is the state that has just been read of the only one of `posts`.
        """
        wanted, author = sorted(set(ids)), state and state.author
        cards: Cards = {author.id: author} if author and author.known else {}
        if context.caller is None:
            cards = await self._cards(wanted, cards)
            return Seen(authors={id_: author_message(id_, cards.get(id_)) for id_ in wanted})
        caller = (state and state.caller) or await self._state(context, authors=wanted, posts=posts)
        _require_account(caller)
        cards, followed = await self._seen_by_caller(wanted, cards, caller, context)
        authors = {
            id_: author_message(id_, cards.get(id_), followed=id_ in followed) for id_ in wanted
        }
        return Seen(authors=authors, liked=caller.liked)

    async def _seen_by_caller(
        self, ids: Sequence[str], cards: Cards, state: CallerState, context: Context
    ) -> tuple[Cards, Collection[str]]:
        """Return cards by id, and the ids of the users that the caller follows."""
        own = state.author
        cards = await self._cards(ids, {**cards, own.id: own} if own else cards)
        is_current = own is not None and self._is_current(own, context)
        missing = [id_ for id_ in ids if id_ not in cards] if is_current else ids
        if not missing:
            return cards, state.followed
        try:
            profiles = await self._ask(missing, state, context)
        except ServiceError as error:
            if error.code not in _UNAVAILABLE:
                raise
            return cards, state.followed
        followed = {id_ for id_, profile in profiles.items() if profile.followed}
        if is_current:
            return {**cards, **profiles}, followed | state.followed
        return profiles, followed

    async def id_of(self, username: str) -> str | None:
        """Return the id of the user with this name; None if there is none."""
        found = await self.authors.by_names([username])
        if len(found) == 1:
            return found[0].id
        try:
            answer = await self.users.get_user(GetUserRequest(username=username))
        except ServiceError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise
        return answer.profile.id

    async def followed_by_caller(self, context: Context) -> list[str]:
        """Return the ids of the users that the caller follows."""
        state = await self._state(context)
        if state.author is None or not self._is_current(state.author, context):
            try:
                answer = await self.users.list_followed_ids(
                    ListFollowedIdsRequest(), timeout=_SECONDS
                )
            except ServiceError as error:
                if error.code not in _UNAVAILABLE:
                    raise
            else:
                return answer.ids
        return await self.follows.ids_followed_by(context.user_id)

    async def _state(
        self, context: Context, *, authors: Iterable[str] = (), posts: Iterable[str] = ()
    ) -> CallerState:
        """Return the stored state of the caller; UNAUTHENTICATED if the account is deleted."""
        state = await self.states.read(context.user_id, authors=authors, posts=posts)
        _require_account(state)
        return state

    def _is_current(self, author: Author, context: Context) -> bool:
        """Return whether the copy of the caller's data may answer: it has every known change."""
        return context.caller_revision <= author.revision

    async def _cards(self, ids: Sequence[str], cards: Cards) -> Cards:
        """Return the cards that are stored, by id; some are at hand in `cards`."""
        rest = [id_ for id_ in ids if id_ not in cards]
        if not rest:
            return cards
        cached = self.cache.of(rest)
        if unread := [id_ for id_ in rest if id_ not in cached]:
            read = await self.authors.by_ids(unread)
            self.cache.keep(read.values())
            cached |= read
        return {**cached, **cards}

    async def _ask(
        self, ids: Sequence[str], state: CallerState, context: Context
    ) -> dict[str, Profile]:
        """Return profiles from `users`, which refuses ended sessions; copy anew after a gap."""
        request = BatchGetUsersRequest(ids=list(ids))
        answer = await self.users.batch_get_users(request, timeout=_SECONDS)
        if state.author is not None and state.author.ahead:
            with suppress(ServiceError):  # the next call tries again
                await self.resync.run(context)
        return {profile.id: profile for profile in answer.profiles}


def _require_account(state: CallerState) -> None:
    """Raise UNAUTHENTICATED if the caller's account is deleted."""
    if state.author is not None and state.author.deleted:
        raise session_revoked()
