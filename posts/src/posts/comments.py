"""Comments in MongoDB."""

from odmantic.query import and_, eq, in_, lt

from posts.models import Comment
from shared.data.mongo_database import Mongo
from shared.data.pages import Page

__all__ = ["CommentRepository", "position"]


def position(comment: Comment) -> tuple[str]:
    """Return where a comment stands in a list: ids grow with time."""
    return (comment.id,)


class CommentRepository:
    """Stores and finds comments."""

    def __init__(self, mongo: Mongo) -> None:
        self._comments = mongo.collection(Comment)

    async def add(self, comment: Comment) -> None:
        """Store a new comment."""
        await self._comments.insert(comment)

    async def get(self, comment_id: str) -> Comment | None:
        """Return the comment with this id."""
        return await self._comments.get(comment_id)

    async def on(self, post_id: str, page: Page) -> list[Comment]:
        """Return comments on a post, the latest first."""
        query = eq(Comment.post_id, post_id)
        if page.after:
            query = and_(query, lt(Comment.id, page.after[0]))
        return await self._comments.find(query, sort=[("_id", -1)], limit=page.limit)

    async def change(self, comment: Comment, body: str, now: int) -> Comment | None:
        """Change a comment, and return it; None if it has changed meanwhile."""
        query = and_(eq(Comment.id, comment.id), eq(Comment.version, comment.version))
        changes = {"$set": {"body": body, "updated_at": now}, "$inc": {"version": 1}}
        return await self._comments.update_one(query, changes)

    async def delete(self, comment_id: str) -> None:
        """Delete a comment."""
        await self._comments.delete_one(eq(Comment.id, comment_id))

    async def erase(self, key: str, id_: str, limit: int) -> list[Comment]:
        """Delete some comments, by `post_id` or `author_id`; return them."""
        query = eq(getattr(Comment, key), id_)
        some = await self._comments.find(query, sort=[("_id", 1)], limit=limit)
        await self._comments.delete_many(in_(Comment.id, [comment.id for comment in some]))
        return some

    async def create_indexes(self) -> None:
        """Create what the queries need."""
        await self._comments.create_indexes()
