"""Author cards: what posts show of users, learned from events of the service `users`."""

from collections.abc import Iterable, Sequence
from contextlib import suppress

from odmantic.query import and_, eq, in_, lt

from postbus.users.v1 import (
    BatchGetUsersRequest,
    GetUserRequest,
    ListFollowedIdsRequest,
    Profile,
    UserProfileUpdated,
    UserRegistered,
    UsersServiceStub,
)
from posts.follows import FollowRepository
from posts.models import Author
from shared.context import Context
from shared.errors import Code, ServiceError
from shared.identity import session_revoked
from shared.messagebus import EventPattern, MessageBus, ServiceChannel
from shared.mongo import Mongo
from shared.work import outside_work

__all__ = ["AuthorCards", "AuthorRepository"]

_AWAY = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED)
_PATIENCE = 1.0
"""Seconds for `users` to answer, before what is known here has to do."""


class AuthorRepository:
    """Stores and finds author cards."""

    def __init__(self, mongo: Mongo) -> None:
        self._authors = mongo.collection(Author)

    async def learn(self, author: Author) -> None:
        """Store a card, unless a later one is known, or the user is gone."""
        if await self.get(author.id) is None:
            await self._authors.insert(author)
            return
        older = and_(lt(Author.version, author.version), eq(Author.deleted, False))
        changes = author.model_dump_doc()
        await self._authors.update_one(
            and_(eq(Author.id, changes.pop("_id")), older), {"$set": changes}
        )

    async def bury(self, user_id: str) -> None:
        """Keep of a user that there is none any more."""
        await self._authors.put(Author(id=user_id, username="", name_key="", deleted=True))

    async def get(self, user_id: str) -> Author | None:
        """Return the card of a user, or what is left of it."""
        return await self._authors.find_one(eq(Author.id, user_id))

    async def by_ids(self, ids: Iterable[str]) -> dict[str, Author]:
        """Return the cards that are known, by id."""
        wanted = sorted(set(ids))
        found = await self._authors.find(
            in_(Author.id, wanted), sort=[("_id", 1)], limit=len(wanted)
        )
        return {author.id: author for author in found}

    async def by_names(self, names: Sequence[str]) -> list[Author]:
        """Return the cards of usernames, without regard to case; rarely more than one of each."""
        keys = [name.lower() for name in names]
        found = in_(Author.name_key, keys)
        return await self._authors.find(found, sort=[("_id", 1)], limit=2 * len(keys))

    async def create_indexes(self) -> None:
        """Create what the queries need."""
        await self._authors.create_indexes()


class AuthorCards:
    """Keeps author cards by events; asks `users` where an event may not have come yet.

    That is: for the caller's own card, so that a new name shows at once to whom it belongs; for a
    name that is not known; and for whom the caller follows. While `users` is away, what is known
    here has to do.
    """

    def __init__(
        self, authors: AuthorRepository, follows: FollowRepository, bus: MessageBus
    ) -> None:
        self._authors = authors
        self._follows = follows
        self._users = UsersServiceStub(ServiceChannel(bus))

    @EventPattern(UserRegistered)
    async def user_registered(self, event: UserRegistered, _context: Context) -> None:
        """Remember the new user."""
        name = event.username
        await self._authors.learn(Author(id=event.user_id, username=name, name_key=name.lower()))

    @EventPattern(UserProfileUpdated)
    async def user_profile_updated(self, event: UserProfileUpdated, _context: Context) -> None:
        """Remember what is new of the user."""
        await self._authors.learn(
            Author(
                id=event.user_id,
                username=event.username,
                name_key=event.username.lower(),
                display_name=event.display_name,
                image_url=event.image_url,
                version=event.version,
            )
        )

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
        author = _card(answer.profiles[0])
        if known is None:
            # outside, for all first posts of an author would wait for each other
            with outside_work(), suppress(ServiceError):  # another call has, meanwhile
                await self._authors.learn(author)
        return author

    async def by_ids(self, ids: Iterable[str], context: Context) -> dict[str, Author]:
        """Return the cards that are known, by id, as the caller may see them."""
        wanted = set(ids)
        cards = await self._authors.by_ids(wanted) if wanted else {}
        if context.caller is not None and context.caller.user_id in wanted:
            own = await self.of_caller(context)
            cards[own.id] = own
        return cards

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


def _card(profile: Profile) -> Author:
    return Author(
        id=profile.id,
        username=profile.username,
        name_key=profile.username.lower(),
        display_name=profile.display_name,
        image_url=profile.image_url,
        version=profile.version,
    )
