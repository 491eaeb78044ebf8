"""Posts in MongoDB."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from odmantic.query import eq

from posts.models import Author, Post
from posts.post_texts import distinct_tags, is_id, is_slug_of, slug_of, with_suffix
from posts.repository import Repository
from posts.stored_times import now
from posts.tags import TagRepository
from shared.data.mongo_counters import CountChange
from shared.data.mongo_database import Mongo
from shared.data.search_terms import distinct_words

__all__ = ["FORMER_SLUGS", "PostRepository"]

FORMER_SLUGS: Final = 100
"""Former slugs that a post keeps. At this number its slug no longer changes."""


class PostRepository(Repository[Post]):
    """Stores and finds posts."""

    def __init__(self, mongo: Mongo) -> None:
        super().__init__(mongo, Post)
        self._authors = mongo.collection(Author)
        self._tags = TagRepository(mongo)
        self._counters = mongo.counters

    async def add(self, post: Post) -> None:
        """Store a new post with an unused slug, and count its tags.

        A draft gets a suffix, so that it does not reserve a plain slug.
        """
        plain = slug_of(post.title)
        is_draft = post.published_at is None
        post.slug = with_suffix(plain) if is_draft else await self._unused_slug(plain)
        post.slugs = [post.slug]
        _set_search_fields(post)
        await self.insert(post)
        await self._tags.count_posts({}, _tags_to_count(post))

    async def get(self, id_: str) -> Post | None:
        """Return the post with this id, or with this current or former slug, as in requests."""
        folded = id_.casefold()  # slugs are stored case-folded
        if is_id(folded):
            return await super().get(folded)
        return await self.find_one(eq(Post.slugs, folded))

    async def exists(self, post_id: str) -> bool:
        """Return whether there is a post with this id."""
        return await self.count(eq(Post.id, post_id), limit=1) == 1

    async def with_author(self, name: str) -> tuple[Post | None, Author | None]:
        """Return a post as `get` does, and its author if `name` is an id."""
        folded = name.casefold()
        if is_id(folded):
            return await self.get_joined(folded, "author_id", self._authors)
        return await self.get(name), None

    async def update(self, post: Post, changes: Mapping[str, Any]) -> None:
        """Change a post that was read in this transaction, and the values derived from it."""
        before = _tags_to_count(post)
        first_published = post.published_at is None and "published_at" in changes
        for name, value in changes.items():
            setattr(post, name, value)
        if post.published and changes.keys() & {"title", "status"}:
            await self._update_slug(post, first_published=first_published)
        _set_search_fields(post)
        post.updated_at = now()
        post.version += 1
        document = post.model_dump_doc()
        for name in ("_id", "like_count", "comment_count"):
            del document[name]
        await self.update_one(eq(Post.id, post.id), {"$set": document})
        await self._tags.count_posts(before, _tags_to_count(post))

    async def _update_slug(self, post: Post, *, first_published: bool) -> None:
        """Set the slug for the title; a current or former slug for the same title is used again.

        Not for drafts, which keep their first slug until they are published.
        """
        plain = slug_of(post.title)
        reusable = [slug for slug in post.slugs if is_slug_of(slug, plain, post.id)]
        if first_published and not await self.get(plain):
            slug = plain
        elif reusable:
            slug = post.slug if post.slug in reusable else min(reusable, key=len)
        elif len(post.slugs) > FORMER_SLUGS:
            return
        else:
            slug = await self._unused_slug(plain)
        post.slug, post.slugs = slug, [slug, *(each for each in post.slugs if each != slug)]

    async def _unused_slug(self, plain: str) -> str:
        return with_suffix(plain) if await self.get(plain) else plain

    async def add_to_count(self, post_id: str, name: str, step: int) -> None:
        """Add `step` to the counter `name` of a post."""
        await self.add_to_counts([post_id], name, step)

    async def add_to_counts(self, post_ids: Sequence[str], name: str, step: int) -> None:
        """Add `step` to the counter `name` of posts, once per occurrence of their id."""
        await self._counters.add(
            CountChange(collection="posts", id=id_, counter=name, step=step * times)
            for id_, times in Counter(post_ids).items()
        )

    async def like_count(self, post: Post) -> int:
        """Return the number of likes of a post that was read in this transaction.

        It includes the changes of this transaction.
        """
        return post.like_count + await self._counters.unfolded(f"posts/{post.id}", "like_count")

    async def delete(self, post: Post) -> None:
        """Delete a post, and decrement the counters of its tags."""
        await self.delete_one(eq(Post.id, post.id))
        await self._tags.count_posts(_tags_to_count(post), {})


def _set_search_fields(post: Post) -> None:
    tags = distinct_tags(post.tags)
    post.tags, post.tag_keys = list(tags.values()), list(tags)
    post.words = distinct_words(post.title, post.summary, *post.tags)


def _tags_to_count(post: Post) -> dict[str, str]:
    """Return the tags by key if the post is published; drafts are not counted."""
    return distinct_tags(post.tags) if post.published else {}
