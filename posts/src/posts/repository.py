"""Posts in MongoDB."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from odmantic.query import eq

from posts.models import Author, Post
from posts.tags import TagRepository
from posts.texts import distinct_tags, is_id, is_slug_of, slug_of, with_suffix
from posts.times import now
from shared.data.mongo_database import Mongo
from shared.data.search_terms import distinct_words

__all__ = ["FORMER_SLUGS", "PostRepository"]

FORMER_SLUGS: Final = 100
"""Slugs that a post keeps beside the current one; with so many its slug no longer changes."""


class PostRepository:
    """Stores and finds posts. Every method raises UNAVAILABLE while the database is away."""

    def __init__(self, mongo: Mongo) -> None:
        self._posts = mongo.collection(Post)
        self._authors = mongo.collection(Author)
        self._tags = TagRepository(mongo)

    async def add(self, post: Post) -> None:
        """Store a new post under a slug of its own, and count its tags."""
        plain = slug_of(post.title)
        draft = post.published_at is None  # takes no slug that a published post would then miss
        post.slug = with_suffix(plain) if draft else await self._free_slug(plain)
        post.slugs = [post.slug]
        _index(post)
        await self._posts.insert(post)
        await self._tags.count({}, _counted(post))

    async def get(self, name: str) -> Post | None:
        """Return the post with this id, or with this current or former slug.

        Every `id` of a post in a request is resolved here; events carry the id of what is found.
        """
        folded = name.casefold()  # as in slugs
        if is_id(folded):
            return await self._posts.get(folded)
        return await self._posts.find_one(eq(Post.slugs, folded))

    async def with_author(self, name: str) -> tuple[Post | None, Author | None]:
        """Return a post as `get` does, and the card of its author where that is at hand."""
        folded = name.casefold()
        if is_id(folded):
            return await self._posts.get_joined(folded, "author_id", self._authors)
        return await self.get(name), None

    async def change(self, post: Post, changes: Mapping[str, Any]) -> None:
        """Change a post that was read in this transaction, and all that hangs on its fields."""
        before = _counted(post)
        published = post.published_at is None and "published_at" in changes
        for name, value in changes.items():
            setattr(post, name, value)
        if post.published and changes.keys() & {"title", "status"}:
            await self._rename(post, first_published=published)
        _index(post)
        post.updated_at = now()
        post.version += 1
        document = post.model_dump_doc()
        for name in ("_id", "like_count", "comment_count"):
            del document[name]
        await self._posts.update_one(eq(Post.id, post.id), {"$set": document})
        await self._tags.count(before, _counted(post))

    async def _rename(self, post: Post, *, first_published: bool) -> None:
        """Give a post the slug of its title; a slug that it has or had for that title stays.

        Drafts are not renamed: their slugs with a suffix do until they are published.
        """
        plain = slug_of(post.title)
        own = [slug for slug in post.slugs if is_slug_of(slug, plain, post.id)]
        if first_published and not await self.get(plain):
            slug = plain
        elif own:
            slug = post.slug if post.slug in own else min(own, key=len)
        elif len(post.slugs) > FORMER_SLUGS:
            return
        else:
            slug = await self._free_slug(plain)
        post.slug, post.slugs = slug, [slug, *(each for each in post.slugs if each != slug)]

    async def _free_slug(self, plain: str) -> str:
        return with_suffix(plain) if await self.get(plain) else plain

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
