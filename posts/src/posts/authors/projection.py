"""Authors as callers see them: from the projection in `posts`, or from `users`."""

from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from postbus import reasons
from postbus.posts.v1 import Author as AuthorMessage
from postbus.users.v1 import (
    BatchGetUsersRequest,
    GetUserRequest,
    ListFollowedIdsRequest,
    Profile,
    UsersServiceStub,
)
from posts.authors.resync import USERS_TIMEOUT, Resync
from posts.authors.storage import AuthorRepository, author_message
from posts.caller_state import CallerData, CallerReader, PostData
from posts.follow_repository import FollowRepository
from posts.models import Author
from shared.access_tokens import session_revoked
from shared.context import Context
from shared.errors import Code, ServiceError
from shared.outbox.unit_of_work import outside_unit_of_work

__all__ = ["AuthorProjection"]

T = TypeVar("T")
Authors = Mapping[str, Author | Profile]
"""Authors by id, from the projection or from `users`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorMessages:
    """Authors and posts as the caller sees them."""

    by_id: Mapping[str, AuthorMessage]
    """The message of a deleted user has only the id."""
    liked: Collection[str] = ()
    """Ids of the posts that the caller likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorProjection:
    """Reads authors as callers see them.

    The projection is used if it includes all changes of the caller that the
    gateway has seen, see `posts.authors`. Otherwise, and for users that the projection
    lacks, `users` is called. While `users` fails, with whatever code, the projection is used:
    the session of the caller was verified by this process. Only UNAUTHENTICATED is raised.
    """

    authors: AuthorRepository
    follows: FollowRepository
    states: CallerReader
    users: UsersServiceStub
    resync: Resync

    async def lock_account(self, context: Context) -> None:
        """Lock the caller, see `posts.repository`. UNAUTHENTICATED if the account is deleted."""
        if not await self.authors.lock([context.user_id]):
            raise session_revoked()

    async def author_of_caller(self, context: Context) -> Author:
        """Return the current author data of the caller.

        UNAUTHENTICATED if the account is deleted.
        """
        state = await self._read_state(context)
        if state.author is not None and _is_current(state.author, context):
            return state.author
        fetch = self._fetch_profiles([context.user_id], state, context)
        profiles = await (_unless_failing(fetch) if state.author else _required(fetch))
        if profiles is None and state.author is not None:
            return state.author
        if not profiles:
            raise session_revoked()
        author = Author.from_message(context.user_id, profiles[context.user_id])
        if state.author is None:
            # not in the unit of work: concurrent first posts of an author would block each other;
            # a concurrent call may have inserted the author already
            with outside_unit_of_work(), suppress(ServiceError):
                await self.authors.upsert_if_newer(author)
        return author

    async def messages_for(
        self,
        ids: Iterable[str],
        context: Context,
        *,
        posts: Iterable[str] = (),
        state: PostData | None = None,
    ) -> AuthorMessages:
        """Return an Author message per id, and the ids of the `posts` that the caller likes.

        `state` is passed if `posts` has one post: the state that was read with it. Without ids
        nothing is read.
        """
        wanted, author = sorted(set(ids)), state and state.author
        if not wanted:
            return AuthorMessages(by_id={})
        found: Authors = {author.id: author} if author and author.has_profile else {}
        if context.caller is None:
            found = await self._read_missing(wanted, found)
            return AuthorMessages(
                by_id={id_: author_message(id_, found.get(id_)) for id_ in wanted}
            )
        caller = (state and state.caller) or await self._read_state(
            context, authors=wanted, posts=posts
        )
        _require_not_deleted(caller)
        found, followed = await self._authors_for(wanted, found, caller, context)
        messages = {
            id_: author_message(id_, found.get(id_), followed=id_ in followed) for id_ in wanted
        }
        return AuthorMessages(by_id=messages, liked=caller.liked)

    async def _authors_for(
        self, ids: Sequence[str], found: Authors, state: CallerData, context: Context
    ) -> tuple[Authors, Collection[str]]:
        """Return authors by id, and the ids of the users that the caller follows."""
        caller = state.author
        found = await self._read_missing(ids, {**found, caller.id: caller} if caller else found)
        is_current = caller is not None and _is_current(caller, context)
        missing = [id_ for id_ in ids if id_ not in found] if is_current else ids
        if not missing:
            return found, state.followed
        profiles = await _unless_failing(self._fetch_profiles(missing, state, context))
        if profiles is None:
            return found, state.followed
        followed = {id_ for id_, profile in profiles.items() if profile.followed}
        if is_current:
            return {**found, **profiles}, followed | state.followed
        return profiles, followed

    async def find_id(self, username: str) -> str | None:
        """Return the id of the user with this name, or None.

        UNAVAILABLE if the projection lacks the user and `users` fails: the user may exist.
        """
        found = await self.authors.by_names([username])
        if len(found) == 1:
            return found[0].id
        call = self.users.get_user(GetUserRequest(username=username), timeout=USERS_TIMEOUT)
        try:
            response = await _required(call)
        except ServiceError as error:
            if error.reason == reasons.USER_NOT_FOUND:
                return None
            raise
        return response.profile.id

    async def followed_by_caller(self, context: Context) -> list[str]:
        """Return the ids of the users that the caller follows."""
        state = await self._read_state(context)
        if state.author is None or not _is_current(state.author, context):
            call = self.users.list_followed_ids(ListFollowedIdsRequest(), timeout=USERS_TIMEOUT)
            response = await _unless_failing(call)
            if response is not None:
                return response.ids
        return await self.follows.ids_followed_by(context.user_id)

    async def _read_state(
        self, context: Context, *, authors: Iterable[str] = (), posts: Iterable[str] = ()
    ) -> CallerData:
        """Return the stored state of the caller; UNAUTHENTICATED if the account is deleted."""
        state = await self.states.read(context.user_id, authors=authors, posts=posts)
        _require_not_deleted(state)
        return state

    async def _read_missing(self, ids: Sequence[str], found: Authors) -> Authors:
        """Return `found` and the other stored authors of `ids`."""
        missing = [id_ for id_ in ids if id_ not in found]
        if not missing:
            return found
        return {**await self.authors.by_ids_cached(missing), **found}

    async def _fetch_profiles(
        self, ids: Sequence[str], state: CallerData, context: Context
    ) -> dict[str, Profile]:
        """Return profiles by id from `users`, which refuses ended sessions.

        If an event about the caller was lost, copy the caller's data again.
        """
        request = BatchGetUsersRequest(ids=list(ids))
        response = await self.users.batch_get_users(request, timeout=USERS_TIMEOUT)
        if state.author is not None and state.author.ahead:
            with suppress(ServiceError):  # the caller's next call runs it again
                await self.resync.run(context)
        return {profile.id: profile for profile in response.profiles}


async def _required(call: Coroutine[Any, Any, T]) -> T:
    """Return the response of `users`.

    Every error but UNAUTHENTICATED and USER_NOT_FOUND becomes UNAVAILABLE: a failure of `users`
    says nothing about the user.
    """
    try:
        return await call
    except ServiceError as error:
        unknown = error.reason == reasons.USER_NOT_FOUND
        if unknown or error.code in (Code.UNAUTHENTICATED, Code.UNAVAILABLE):
            raise
        raise ServiceError(
            reasons.USERS_UNAVAILABLE,
            "The data of users are unavailable.",
            retry_after=error.retry_after or 1,
            trace_id=error.trace_id,
        ) from None


async def _unless_failing(call: Coroutine[Any, Any, T]) -> T | None:
    """Return the response of `users`, or None if it fails; UNAUTHENTICATED is raised."""
    try:
        return await call
    except ServiceError as error:
        if error.code is Code.UNAUTHENTICATED:
            raise
        return None


def _is_current(author: Author, context: Context) -> bool:
    """Return whether the projection has the highest known revision of the caller."""
    return context.caller_revision <= author.revision


def _require_not_deleted(state: CallerData) -> None:
    if state.author is not None and state.author.deleted:
        raise session_revoked()
