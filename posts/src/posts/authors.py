"""Author cards in MongoDB: the part of a user that posts and comments show."""

from collections.abc import Sequence

from odmantic.query import and_, eq, in_, lt

from postbus.posts.v1 import Author as AuthorMessage
from postbus.users.v1 import Profile, UserProfileUpdated
from posts.models import Author
from posts.revisions import has_stored, with_revision
from shared.data.mongo_database import Mongo

__all__ = ["AuthorRepository", "author_message", "card_of", "gone"]


class AuthorRepository:
    """Stores and finds author cards."""

    def __init__(self, mongo: Mongo) -> None:
        self._authors = mongo.collection(Author)

    async def learn(self, author: Author) -> None:
        """Store a card, unless a later one is known or the user is gone; keep the revision."""
        if await self._authors.get(author.id) is None:
            await self._authors.insert(author)
            return
        older = and_(lt(Author.version, author.version), eq(Author.deleted, False))
        changes = author.model_dump_doc()
        for name in ("revision", "ahead"):
            del changes[name]
        await self._authors.update_one(
            and_(eq(Author.id, changes.pop("_id")), older), {"$set": changes}
        )

    async def revise(self, user_id: str, revision: int) -> bool:
        """Store that the change with this revision is here; False if that is stored already.

        Part of the work that stores the change. A revision of 0 is not stored.
        """
        if revision == 0:
            return True
        author = await self._authors.get(user_id)
        if author is None:
            author = Author(id=user_id, username="", name_key="", version=0)
            await self._authors.insert(author)
        if has_stored(author, revision):
            return False
        await self.set_revision(user_id, *with_revision(author, revision))
        return True

    async def set_revision(self, user_id: str, revision: int, ahead: list[int] | None) -> None:
        """Store which revisions are here, see `posts.revisions`."""
        stored = {"revision": revision, "ahead": ahead}
        await self._authors.update_one(eq(Author.id, user_id), {"$set": stored})

    async def bury(self, user_id: str) -> None:
        """Keep of a user that there is none any more."""
        await self._authors.put(gone(user_id))

    async def get(self, user_id: str) -> Author | None:
        """Return the card of a user, or what is left of it."""
        return (await self.by_ids([user_id])).get(user_id)

    async def by_ids(self, ids: Sequence[str]) -> dict[str, Author]:
        """Return the cards that are known, by id."""
        found = await self._authors.get_many(ids)
        return {id_: author for id_, author in found.items() if author.known}

    async def by_names(self, names: Sequence[str]) -> list[Author]:
        """Return the cards of usernames, without regard to case; rarely more than one of each."""
        keys = [name.lower() for name in names]
        found = in_(Author.name_key, keys)
        return await self._authors.find(found, sort=[("_id", 1)], limit=2 * len(keys))

    async def create_indexes(self) -> None:
        """Create what the queries need."""
        await self._authors.create_indexes()


def card_of(id_: str, told: Profile | UserProfileUpdated) -> Author:
    """Return the card of a user, by what `users` tells."""
    return Author(
        id=id_,
        username=told.username,
        name_key=told.username.lower(),
        display_name=told.display_name,
        image_url=told.image_url,
        version=told.version,
    )


def gone(id_: str) -> Author:
    """Return what is left of the card of a deleted user."""
    return Author(id=id_, username="", name_key="", deleted=True)


def author_message(
    id_: str, card: Author | Profile | None, *, followed: bool = False
) -> AuthorMessage:
    """Return an author as the contract shows it; without a card all but the id is empty."""
    if card is None:
        return AuthorMessage(id=id_)
    return AuthorMessage(
        id=id_,
        username=card.username,
        display_name=card.display_name,
        image_url=card.image_url,
        followed=followed,
    )
