"""Posts in MongoDB."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from odmantic.query import QueryExpression, eq, gt, in_, lt

from posts.models import PUBLISHED, Author, Post
from posts.tags import TagRepository
from posts.texts import distinct_tags, slug_of, tag_key, with_suffix
from posts.times import now
from shared.mongo import Mongo
from shared.pages import Page
from shared.words import distinct_words

__all__ = ["PostFilter", "PostRepository", "is_id", "position"]

_OLD_SLUGS: Final = 10
_UNLISTED: Final = ("body", "slugs", "tag_keys", "words")
_UUID: Final = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PostFilter:
    """Which posts a list has. None stands for all."""

    status: str = PUBLISHED
    author_ids: Sequence[str] | None = None
    tag: str = ""
    q: str = ""

    def queries(self) -> list[QueryExpression]:
        """Return what all of the posts match."""
        queries = [eq(Post.status, self.status)]
        if self.author_ids is not None:
            only = len(self.author_ids) == 1
            who = (
                eq(Post.author_id, self.author_ids[0])
                if only
                else in_(Post.author_id, self.author_ids)
            )
            queries.append(who)
        if self.tag:
            queries.append(eq(Post.tag_keys, tag_key(self.tag)))
        queries += [eq(Post.words, word) for word in distinct_words(self.q)]
        return queries

    @property
    def nothing(self) -> bool:
        """Whether no post can match."""
        return self.author_ids == [] or bool(self.q.strip() and not distinct_words(self.q))


def position(post: Post) -> tuple[str]:
    """Return where a post stands in lists."""
    return (post.place,)


def is_id(name: str) -> bool:
    """Return whether a folded name is an id, not a slug."""
    return _UUID.fullmatch(name) is not None


class PostRepository:
    """Stores and finds posts. Every method raises UNAVAILABLE while the database is away."""

    def __init__(self, mongo: Mongo) -> None:
        self._posts = mongo.collection(Post)
        self._authors = mongo.collection(Author)
        self._tags = TagRepository(mongo)

    async def add(self, post: Post) -> None:
        """Store a new post under a slug of its own, and count its tags."""
        post.slug = await self._free_slug(post)
        post.slugs = [post.slug]
        _index(post)
        await self._posts.insert(post)
        await self._tags.count({}, _counted(post))

    async def get(self, name: str) -> Post | None:
        """Return the post with this id, or that has or had this slug."""
        folded = name.casefold()  # as in slugs
        if _UUID.fullmatch(folded):
            return await self._posts.get(folded)
        return await self._posts.find_one(eq(Post.slugs, folded))

    async def with_author(self, name: str) -> tuple[Post | None, Author | None]:
        """Return a post as `get` does, and the card of its author where that is at hand."""
        folded = name.casefold()
        if _UUID.fullmatch(folded):
            return await self._posts.get_with(folded, "author_id", self._authors)
        return await self.get(name), None

    async def find(
        self, wanted: PostFilter, page: Page, *, oldest_first: bool = False
    ) -> list[Post]:
        """Return posts without their bodies, the latest first unless `oldest_first`."""
        if wanted.nothing:
            return []
        queries = wanted.queries()
        if page.after:
            beyond = gt if oldest_first else lt
            queries.append(beyond(Post.place, page.after[0]))
        sort = [("place", 1 if oldest_first else -1)]
        return await self._posts.find(*queries, sort=sort, limit=page.limit, without=_UNLISTED)

    async def count(self, wanted: PostFilter) -> int:
        """Count what `find` finds on all pages."""
        return 0 if wanted.nothing else await self._posts.count(*wanted.queries())

    async def change(self, post: Post, changes: Mapping[str, Any]) -> None:
        """Change a post that was read in this transaction, and all that hangs on its fields."""
        before = _counted(post)
        renamed = "title" in changes or (post.published_at is None and "published_at" in changes)
        for name, value in changes.items():
            setattr(post, name, value)
        if renamed:
            await self._rename(post)
        _index(post)
        post.updated_at = now()
        post.version += 1
        document = post.model_dump_doc()
        for name in ("_id", "like_count", "comment_count"):
            del document[name]
        await self._posts.update_one(eq(Post.id, post.id), {"$set": document})
        await self._tags.count(before, _counted(post))

    async def _rename(self, post: Post) -> None:
        slug = slug_of(post.title)
        if slug not in post.slugs:
            slug = await self._free_slug(post)
        others = [each for each in post.slugs if each != slug]
        post.slug, post.slugs = slug, [slug, *others[:_OLD_SLUGS]]

    async def _free_slug(self, post: Post) -> str:
        """Return a slug that is free; a draft takes none that others would then miss."""
        slug = slug_of(post.title)
        taken = post.published_at is None or await self.get(slug)
        return with_suffix(slug) if taken else slug

    async def add_to_count(self, post_id: str, name: str, step: int) -> int:
        """Add to the counter `name` of a post that was read in this transaction; return the sum."""
        post = await self._posts.update_one(eq(Post.id, post_id), {"$inc": {name: step}})
        return getattr(post, name, 0)

    async def take_from_counts(self, post_ids: Sequence[str], name: str) -> None:
        """Take one from the counter `name` of posts, for each time that they are named."""
        for post_id in sorted(set(post_ids)):
            step = -post_ids.count(post_id)
            await self._posts.update_one(eq(Post.id, post_id), {"$inc": {name: step}})

    async def delete(self, post: Post) -> None:
        """Delete a post, and count its tags no longer."""
        await self._posts.delete_one(eq(Post.id, post.id))
        await self._tags.count(_counted(post), {})

    async def some_of(self, author_id: str, limit: int) -> list[Post]:
        """Return some posts of a user, in whatever state."""
        query = eq(Post.author_id, author_id)
        return await self._posts.find(query, sort=[("_id", 1)], limit=limit, without=["body"])

    async def create_indexes(self) -> None:
        """Create what the queries need."""
        await self._posts.create_indexes()
        await self._tags.create_indexes()


def _index(post: Post) -> None:
    """Set the fields that a post is found by."""
    tags = distinct_tags(post.tags)
    post.tags, post.tag_keys = list(tags.values()), list(tags)
    post.words = distinct_words(post.title, post.summary, *post.tags)


def _counted(post: Post) -> dict[str, str]:
    """Return the tags that count, by key."""
    return distinct_tags(post.tags) if post.published else {}
