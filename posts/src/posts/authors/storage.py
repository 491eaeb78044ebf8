"""Authors in MongoDB: the fields of an account that posts and comments show."""

from collections.abc import Mapping, Sequence
from typing import Final

from odmantic.query import and_, eq, in_, lt

from postbus import reasons
from postbus.posts.v1 import Author as AuthorMessage
from postbus.users.v1 import Profile
from posts.authors.cache import AuthorCache
from posts.models import Author
from posts.repository import lock
from shared.data.mongo_collection import Collection
from shared.data.mongo_database import Mongo
from shared.errors import ServiceError

__all__ = ["MAX_AHEAD", "AuthorRepository", "author_message", "has_stored", "with_revision"]

MAX_AHEAD: Final = 100
"""Revisions stored after a missing one. Further revisions are not stored and count as missing."""
_MAX_REVISION_STEP: Final = 1_000_000
"""Each change of an account adds one to its revision, and events are lost rarely."""


class AuthorRepository(Collection[Author]):
    """Stores and finds authors."""

    def __init__(self, mongo: Mongo, cache: AuthorCache) -> None:
        super().__init__(mongo.database, Author)
        self._cache = cache

    async def upsert_if_newer(self, author: Author) -> None:
        """Insert or update an author, unless the stored version is newer or the user is deleted.

        An update keeps the stored revision.
        """
        if await self.get(author.id) is None:
            await self.insert(author)
            return
        older = and_(lt(Author.version, author.version), eq(Author.deleted, False))
        changes = author.model_dump_doc()
        for name in ("revision", "ahead"):
            del changes[name]
        await self.update_one(and_(eq(Author.id, changes.pop("_id")), older), {"$set": changes})

    async def add_revision(self, user_id: str, revision: int) -> bool:
        """Record that the change with this revision is stored; False if that is recorded already.

        Part of the unit of work that stores the change. A revision of 0 is not recorded. Raises
        FORGED for a revision far beyond the stored one: it would count as missing ones for ever.
        """
        if revision == 0:
            return True
        author = await self.get(user_id)
        if revision - (author.revision if author else 0) > _MAX_REVISION_STEP:
            raise ServiceError(reasons.FORGED, "The owner has no such revision of the user.")
        if author is None:
            author = Author.unnamed(user_id)
            await self.insert(author)
        if has_stored(author, revision):
            return False
        await self.set_revision(user_id, *with_revision(author, revision))
        return True

    async def lock(self, ids: Sequence[str]) -> list[str]:
        """Lock users, see `posts.repository`, and return the ids of the users that are not deleted.

        A user that is not stored yet is inserted without a name.
        """
        await self.update_many(and_(in_(Author.id, ids), eq(Author.deleted, False)), lock())
        found = await self.get_many(ids)
        for id_ in ids:
            if id_ not in found:
                await self.insert(Author.unnamed(id_))
        return [id_ for id_ in ids if id_ not in found or not found[id_].deleted]

    async def set_revision(self, user_id: str, revision: int, ahead: list[int] | None) -> None:
        """Set the revisions that are stored; see `posts.authors`."""
        stored = {"revision": revision, "ahead": ahead}
        await self.update_one(eq(Author.id, user_id), {"$set": stored})

    async def by_ids(self, ids: Sequence[str]) -> dict[str, Author]:
        """Return the stored authors and tombstones by id."""
        found = await self.get_many(ids)
        return {id_: author for id_, author in found.items() if author.has_profile}

    async def by_ids_cached(self, ids: Sequence[str]) -> Mapping[str, Author]:
        """Return authors by id as `by_ids` does, but first from the cache."""
        found = self._cache.get_many(ids)
        if missing := [id_ for id_ in ids if id_ not in found]:
            stored = await self.by_ids(missing)
            self._cache.put(stored.values())
            found |= stored
        return found

    async def by_names(self, names: Sequence[str]) -> list[Author]:
        """Return the authors with these usernames in any case.

        There can be two per name until the event of a rename arrives.
        """
        keys = [name.lower() for name in names]
        query = in_(Author.name_key, keys)
        return await self.find(query, sort=[("name_key", 1)], limit=2 * len(keys))


def has_stored(author: Author, revision: int) -> bool:
    """Return whether the change with this revision is stored."""
    return revision <= author.revision or revision in (author.ahead or ())


def with_revision(author: Author, revision: int) -> tuple[int, list[int] | None]:
    """Return the `revision` and `ahead` of an author after one more revision is stored."""
    ahead = sorted({*(author.ahead or ()), revision})[: MAX_AHEAD + 1]
    reached = author.revision
    while ahead and ahead[0] <= reached + 1:
        reached = max(reached, ahead.pop(0))
    return reached, ahead[:MAX_AHEAD] or None


def author_message(
    user_id: str, author: Author | Profile | None, *, followed: bool = False
) -> AuthorMessage:
    """Return an Author message. For an unknown author all fields but the id are empty."""
    if author is None:
        return AuthorMessage(id=user_id)
    return AuthorMessage(
        id=user_id,
        username=author.username,
        display_name=author.display_name,
        image_url=author.image_url,
        followed=followed,
    )
