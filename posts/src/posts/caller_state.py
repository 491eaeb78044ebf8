"""A caller's own data, in one query: card, follows and likes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from posts.models import Author
from shared.loader import Loader
from shared.mongo import Mongo

__all__ = ["CallerState", "CallerStates"]

Document = dict[str, Any]

_CARD: Final = "card "
_FOLLOW: Final = "follow "
_LIKE: Final = "like "
_COLLECTIONS: Final = {_FOLLOW: "follows", _LIKE: "likes"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerState:
    """What is stored of a caller."""

    author: Author | None
    """The caller's card; None if there is none yet. Its revision holds for `followed`, too."""
    followed: frozenset[str]
    """Which of the users asked for the caller follows."""
    liked: frozenset[str]
    """Which of the posts asked for the caller likes."""


class CallerStates:
    """Reads callers' data, never as part of a work. Reads of the same moment are one query."""

    def __init__(self, mongo: Mongo) -> None:
        self._authors = mongo.collection(Author)
        self._loader = Loader(self._fetch)

    async def read(
        self, user_id: str, *, authors: Iterable[str] = (), posts: Iterable[str] = ()
    ) -> CallerState:
        """Return the card, and which of `authors` the user follows and of `posts` likes."""
        follows = {f"{_FOLLOW}{user_id}/{id_}": id_ for id_ in authors if id_ != user_id}
        likes = {f"{_LIKE}{id_}/{user_id}": id_ for id_ in posts}
        card = _CARD + user_id
        found = await self._loader.load([card, *follows, *likes])
        document = found.get(card)
        author = self._authors.read([document])[0] if document else None
        return CallerState(
            author=author if author is not None and author.known else None,
            followed=frozenset(id_ for key, id_ in follows.items() if key in found),
            liked=frozenset(id_ for key, id_ in likes.items() if key in found),
        )

    async def _fetch(self, keys: Sequence[str]) -> dict[str, Document]:
        """Return documents by key. MongoDB reads the cards first, so what follows is no older."""
        pipeline: list[Document] = [{"$match": {"_id": {"$in": _ids(keys, _CARD)}}}]
        for prefix, collection in _COLLECTIONS.items():
            if ids := _ids(keys, prefix):
                matching = [
                    {"$match": {"_id": {"$in": ids}}},
                    {"$project": {"prefix": {"$literal": prefix}}},
                ]
                pipeline.append({"$unionWith": {"coll": collection, "pipeline": matching}})
        found = await self._authors.aggregate(pipeline)
        return {each.get("prefix", _CARD) + each["_id"]: each for each in found}


def _ids(keys: Sequence[str], prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
