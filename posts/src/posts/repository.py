"""Posts and author cards in MongoDB."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from odmantic.query import QueryExpression, and_, eq, in_, lt

from posts.models import Author, Post
from shared.mongo import Mongo

__all__ = ["AuthorRepository", "PostRepository"]


class PostRepository:
    """Stores and finds posts. Every method raises UNAVAILABLE while the database is away."""

    def __init__(self, mongo: Mongo) -> None:
        self._posts = mongo.collection(Post)

    async def add(self, post: Post) -> None:
        """Store a new post."""
        await self._posts.insert(post)

    async def get(self, post_id: str) -> Post | None:
        """Return the post with this id."""
        return await self._posts.find_one(eq(Post.id, post_id))

    async def newest(self, *, author_id: str, before: str, limit: int) -> list[Post]:
        """Return up to `limit` posts, newest first: older than the post `before`, by an author.

        An empty `author_id` stands for everyone, an empty `before` for now.
        """
        queries: list[QueryExpression] = []
        if author_id:
            queries.append(eq(Post.author_id, author_id))
        if before:
            queries.append(lt(Post.id, before))
        return await self._posts.find(*queries, sort=[("_id", -1)], limit=limit)

    async def change(
        self, post_id: str, author_id: str, changes: Mapping[str, Any], now: datetime
    ) -> Post | None:
        """Change the author's post and count its version up; None if the author has none such."""
        query = and_(eq(Post.id, post_id), eq(Post.author_id, author_id))
        if not changes:
            return await self._posts.find_one(query)
        return await self._posts.update_one(
            query, {"$set": {**changes, "updated_at": now}, "$inc": {"version": 1}}
        )

    async def delete(self, post_id: str, author_id: str) -> bool:
        """Delete the author's post; False if the author has none such."""
        return await self._posts.delete_one(
            and_(eq(Post.id, post_id), eq(Post.author_id, author_id))
        )

    async def create_indexes(self) -> None:
        """Create what the queries need."""
        await self._posts.create_indexes()


class AuthorRepository:
    """Stores author cards."""

    def __init__(self, mongo: Mongo) -> None:
        self._authors = mongo.collection(Author)

    async def put(self, author: Author) -> None:
        """Store a card, new or changed."""
        await self._authors.put(author)

    async def by_ids(self, author_ids: Iterable[str]) -> dict[str, Author]:
        """Return the cards that are known, by id."""
        wanted = sorted(set(author_ids))
        found = await self._authors.find(
            in_(Author.id, wanted), sort=[("_id", 1)], limit=len(wanted)
        )
        return {author.id: author for author in found}
