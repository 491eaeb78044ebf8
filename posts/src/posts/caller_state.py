"""A caller's data in one query: author, follows and likes; and a post with its author."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from posts.models import Author, Post
from shared.data.loader import Loader
from shared.data.mongo_database import Mongo

__all__ = ["CallerData", "CallerReader", "PostData"]

Document = dict[str, Any]

_AUTHOR: Final = "author "
_FOLLOW: Final = "follow "
_LIKE: Final = "like "
_POST: Final = "post "
_FOLLOW_OF_AUTHOR: Final = "view "
"""Prefixes of keys, see `CallerReader._fetch`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerData:
    """The stored data of a caller."""

    author: Author | None
    """The caller; None if not stored yet. The revision applies to `followed`, too."""
    followed: frozenset[str]
    """Ids of the given users that the caller follows."""
    liked: frozenset[str]
    """Ids of the given posts that the caller likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostData:
    """A post with the data that a reply shows with it."""

    post: Post | None
    author: Author | None = None
    """The author of the post; None if it was not read."""
    caller: CallerData | None = None
    """The caller's data about the post and its author; None if it was not read."""


class CallerReader:
    """Reads the data of callers. Concurrent reads are one query, never part of a unit of work."""

    def __init__(self, mongo: Mongo) -> None:
        self._authors = mongo.collection(Author)
        self._posts = mongo.collection(Post)
        self._loader = Loader(self._fetch)

    async def read(
        self, user_id: str, *, authors: Iterable[str] = (), posts: Iterable[str] = ()
    ) -> CallerData:
        """Return the user, the followed users of `authors` and the liked posts of `posts`."""
        follows = {f"{_FOLLOW}{user_id}/{id_}": id_ for id_ in authors if id_ != user_id}
        likes = {f"{_LIKE}{id_}/{user_id}": id_ for id_ in posts}
        found = await self._loader.load([_AUTHOR + user_id, *follows, *likes])
        return CallerData(
            author=self._author(found, user_id),
            followed=frozenset(id_ for key, id_ in follows.items() if key in found),
            liked=frozenset(id_ for key, id_ in likes.items() if key in found),
        )

    async def read_post(self, post_id: str, user_id: str) -> PostData:
        """Return a post, its author, and the follow and like of the user."""
        post, like = _POST + post_id, f"{_LIKE}{post_id}/{user_id}"
        keys = [_AUTHOR + user_id, post, like, f"{_FOLLOW_OF_AUTHOR}{post_id}/{user_id}"]
        found = await self._loader.load(keys)
        document = found.get(post)
        if document is None:
            return PostData(post=None)
        author_id = document["author_id"]
        follows = any(each["follower_id"] == user_id for each in document["follows"])
        state = CallerData(
            author=self._author(found, user_id),
            followed=frozenset([author_id] if follows else []),
            liked=frozenset([post_id] if like in found else []),
        )
        [read] = self._posts.read([document])
        author = next(iter(self._authors.read(document["author"])), None)
        return PostData(post=read, author=author, caller=state)

    def _author(self, found: Mapping[str, Document], user_id: str) -> Author | None:
        document = found.get(_AUTHOR + user_id)
        if document is None:
            return None
        [author] = self._authors.read([document])
        return author if author.has_profile else None

    async def _fetch(self, keys: Sequence[str]) -> dict[str, Document]:
        """Return documents by key. A key is the prefix of a collection with an id.

        A key of a post and a caller, with the prefix of a follow of the author, has no document:
        it adds that follow to the document of the post. MongoDB reads the authors first, so that
        a follow is at least as new as the revision of the author.
        """
        views = [key.split("/") for key in _ids(keys, _FOLLOW_OF_AUTHOR)]
        posts = _posts(_ids(keys, _POST), views)
        pipeline: list[Document] = [
            {"$match": {"_id": {"$in": _ids(keys, _AUTHOR)}}},
            *_union("posts", _POST, posts),
            *_union("follows", _FOLLOW, _matching(_ids(keys, _FOLLOW))),
            *_union("likes", _LIKE, _matching(_ids(keys, _LIKE))),
        ]
        found = await self._authors.aggregate(pipeline)
        return {each.get("prefix", _AUTHOR) + each["_id"]: each for each in found}


def _ids(keys: Sequence[str], prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]


def _union(collection: str, prefix: str, stages: Sequence[Document]) -> list[Document]:
    """Return the stage that adds documents with their prefix; none without `stages`."""
    if not stages:
        return []
    pipeline = [*stages, {"$set": {"prefix": {"$literal": prefix}}}]
    return [{"$unionWith": {"coll": collection, "pipeline": pipeline}}]


def _matching(ids: Sequence[str]) -> list[Document]:
    """Return the stages that find documents by id and return only the ids."""
    return [{"$match": {"_id": {"$in": ids}}}, {"$project": {"_id": 1}}] if ids else []


def _posts(ids: Sequence[str], views: Sequence[Sequence[str]]) -> list[Document]:
    """Return the stages that find posts with their authors and the follows of their callers."""
    if not ids:
        return []
    pairs = [{"post": post_id, "caller": user_id} for post_id, user_id in views]
    of_post = {"input": {"$literal": pairs}, "cond": {"$eq": ["$$this.post", "$_id"]}}
    follow = {"$concat": ["$$this.caller", "/", "$author_id"]}
    return [
        {"$match": {"_id": {"$in": ids}}},
        {"$set": {"follows": {"$map": {"input": {"$filter": of_post}, "in": follow}}}},
        _lookup("authors", "author_id", "author"),
        _lookup("follows", "follows", "follows"),
    ]


def _lookup(collection: str, field: str, name: str) -> Document:
    return {"$lookup": {"from": collection, "localField": field, "foreignField": "_id", "as": name}}
