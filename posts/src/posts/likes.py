"""Likes: their rpcs in PostsService, and the documents in MongoDB."""

from dataclasses import dataclass
from typing import Any, Final

from odmantic.query import and_, eq, lt, lte, or_

from postbus.posts.v1 import (
    LikePostRequest,
    LikePostResponse,
    ListLikersRequest,
    ListLikersResponse,
    PostLiked,
    PostsServiceBase,
    PostUnliked,
    UnlikePostRequest,
    UnlikePostResponse,
)
from posts.authors import AuthorProjection
from posts.models import Like, Post
from posts.post_filters import PostFilter
from posts.post_repository import PostRepository
from posts.post_search import UNLISTED
from posts.presenter import Presenter
from posts.repository import Repository
from posts.rules import require_published, require_readable
from posts.stored_times import now, sort_key
from shared.bus import MessagePattern, publish
from shared.context import Context
from shared.data.mongo_database import Mongo
from shared.data.pages import Page, Pages, Position

__all__ = ["EXAMINED", "LikeHandlers", "LikeRepository", "like_id"]

EXAMINED: Final = 1000
"""Likes that one page or one total of liked posts examines, each with its post."""


def like_id(post_id: str, user_id: str) -> str:
    """Return the id of the like of a post by a user."""
    return f"{post_id}/{user_id}"


class LikeRepository(Repository[Like]):
    """Stores and finds likes."""

    def __init__(self, mongo: Mongo) -> None:
        super().__init__(mongo, Like)
        self._posts = mongo.collection(Post)

    async def add(self, post_id: str, user_id: str) -> bool:
        """Add a like; False if it exists."""
        id_ = like_id(post_id, user_id)
        if await self.get(id_):
            return False
        key = sort_key(now(), post_id)
        await self.insert(Like(id=id_, post_id=post_id, user_id=user_id, place=key))
        return True

    async def remove(self, post_id: str, user_id: str) -> bool:
        """Remove a like; False if it does not exist."""
        return await self.delete_one(eq(Like.id, like_id(post_id, user_id)))

    async def posts(
        self, user_id: str, wanted: PostFilter, page: Page
    ) -> tuple[list[Post], Position]:
        """Return posts that a user likes without their bodies, the latest like first.

        Also return the position after which the next page begins, or an empty one if this page is
        the last. A page examines EXAMINED likes, so it can be short or empty.
        """
        if wanted.matches_nothing:
            return [], ()
        last = await self._last_examined(user_id, page.after)
        pipeline = _liked_posts(user_id, wanted, page.after, last)
        found = await self.aggregate([*pipeline, {"$limit": page.limit}])
        items = found[: page.size]
        next_ = (items[-1]["place"],) if len(found) > page.size else last
        return self._posts.read(each["post"] for each in items), next_

    async def count_posts(self, user_id: str, wanted: PostFilter) -> int | None:
        """Count the posts that `posts` returns on all pages; None for more than EXAMINED likes."""
        if wanted.matches_nothing:
            return 0
        if await self._last_examined(user_id, ()):
            return None
        pipeline = [*_liked_posts(user_id, wanted, (), ()), {"$count": "n"}]
        counted = await self.aggregate(pipeline)
        return counted[0]["n"] if counted else 0

    async def _last_examined(self, user_id: str, after: Position) -> Position:
        """Return the position of the last like to examine; empty if no more likes follow."""
        query = eq(Like.user_id, user_id)
        if after:
            query = and_(query, lt(Like.place, after[0]))
        found = await self.find(query, sort=[("place", -1)], skip=EXAMINED - 1, limit=1)
        return (found[0].place,) if found else ()

    async def of_post(self, post_id: str, page: Page) -> list[Like]:
        """Return likes of a post, the latest first."""
        query = eq(Like.post_id, post_id)
        if page.after:
            key, id_ = page.after
            earlier = or_(lt(Like.place, key), lt(Like.id, id_))
            query = and_(query, lte(Like.place, key), earlier)
        return await self.find(query, sort=[("place", -1), ("_id", -1)], limit=page.limit)


def _liked_posts(
    user_id: str, wanted: PostFilter, after: Position, last: Position
) -> list[dict[str, Any]]:
    """Return the pipeline: likes of a user up to `last`, joined with the posts of the filter."""
    match: dict[str, Any] = {"user_id": user_id}
    if bounds := ({"$lt": after[0]} if after else {}) | ({"$gte": last[0]} if last else {}):
        match["place"] = bounds
    posts = {
        "from": "posts",
        "localField": "post_id",
        "foreignField": "_id",
        "as": "post",
        "pipeline": [
            {"$match": {"$and": [dict(query) for query in wanted.queries()]}},
            {"$project": dict.fromkeys(UNLISTED, 0)},
        ],
    }
    return [{"$match": match}, {"$sort": {"place": -1}}, {"$lookup": posts}, {"$unwind": "$post"}]


@dataclass(frozen=True, slots=True)
class LikeHandlers:
    """Handlers of likes."""

    likes: LikeRepository
    posts: PostRepository
    authors: AuthorProjection
    presenter: Presenter
    pages: Pages

    @MessagePattern(PostsServiceBase.like_post)
    async def like_post(self, request: LikePostRequest, context: Context) -> LikePostResponse:
        """Add the caller's like. Nothing changes if it exists."""
        await self.authors.author_of_caller(context)  # refuses a deleted account
        post = require_published(await self.posts.get(request.id))
        message = await self.presenter.post(post, context)
        user_id = context.user_id
        if await self.likes.add(post.id, user_id):
            await publish(PostLiked(post_id=post.id, author_id=post.author_id, user_id=user_id))
            await self.posts.add_to_count(post.id, "like_count", 1)
        message.like_count = await self.posts.like_count(post)
        message.liked = True
        return LikePostResponse(post=message)

    @MessagePattern(PostsServiceBase.unlike_post)
    async def unlike_post(self, request: UnlikePostRequest, context: Context) -> UnlikePostResponse:
        """Remove the caller's like. Nothing changes if there is none."""
        post = require_published(await self.posts.get(request.id))
        message = await self.presenter.post(post, context)
        user_id = context.user_id
        if await self.likes.remove(post.id, user_id):
            await publish(PostUnliked(post_id=post.id, author_id=post.author_id, user_id=user_id))
            await self.posts.add_to_count(post.id, "like_count", -1)
        message.like_count = await self.posts.like_count(post)
        message.liked = False
        return UnlikePostResponse(post=message)

    @MessagePattern(PostsServiceBase.list_likers)
    async def list_likers(self, request: ListLikersRequest, context: Context) -> ListLikersResponse:
        """Return a page of the likers of a post that the caller may read."""
        post = require_readable(await self.posts.get(request.id), context)
        page = self.pages.of(request)
        likes, token = page.cut(
            await self.likes.of_post(post.id, page), lambda like: (like.place, like.id)
        )
        authors = await self.authors.messages_for((like.user_id for like in likes), context)
        return ListLikersResponse(
            likers=[authors.by_id[like.user_id] for like in likes],
            next_page_token=token,
            total=post.like_count if request.include_total else None,
        )
