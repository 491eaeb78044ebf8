"""Export of the caller's data: that of `users` first, then the content that `posts` stores."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import betterproto
from odmantic import Model
from odmantic.query import QueryExpression, and_, eq, lt

from postbus import reasons
from postbus.posts.v1 import ExportMeRequest, ExportMeResponse, ExportServiceBase
from postbus.posts.v1 import Like as LikeMessage
from postbus.users.v1 import AccountExportServiceStub, ExportAccountRequest
from posts.authors import AuthorProjection, author_message
from posts.models import DRAFT, PUBLISHED, Comment, Like, Notification, Post
from posts.presenter import Presenter, comment_message, post_message
from posts.stored_times import from_micros, time_of_key
from shared.bus import MessagePattern
from shared.context import Context
from shared.data.mongo_collection import Collection
from shared.data.mongo_database import Mongo
from shared.data.pages import Page, Position, read_pages
from shared.errors import ServiceError, invalid_field

__all__ = ["ExportHandlers", "ExportRepository"]

M = TypeVar("M", bound=Model)
_BATCH: Final = 100
"""Documents that one query reads; an export keeps them in memory."""
_POSTS: Final = 20
"""Posts that one query reads: a post has up to 400 kB."""


class ExportRepository:
    """Finds the content of a user, each kind the latest first."""

    def __init__(self, mongo: Mongo) -> None:
        self._posts = mongo.collection(Post)
        self._comments = mongo.collection(Comment)
        self._likes = mongo.collection(Like)
        self._notifications = mongo.collection(Notification)

    async def posts(self, status: str, user_id: str, page: Page) -> list[Post]:
        """Return posts of a user with a status."""
        query = and_(eq(Post.author_id, user_id), eq(Post.status, status))
        return await _find(self._posts, query, Post.place, page)

    async def comments(self, user_id: str, page: Page) -> list[Comment]:
        """Return comments of a user."""
        return await _find(self._comments, eq(Comment.author_id, user_id), Comment.id, page)

    async def likes(self, user_id: str, page: Page) -> list[Like]:
        """Return likes of a user."""
        return await _find(self._likes, eq(Like.user_id, user_id), Like.place, page)

    async def notifications(self, user_id: str, page: Page) -> list[Notification]:
        """Return notifications of a user, except for undone actions."""
        own = and_(eq(Notification.user_id, user_id), eq(Notification.hidden, False))
        return await _find(self._notifications, own, Notification.id, page)


async def _find(collection: Collection[M], query: QueryExpression, key: Any, page: Page) -> list[M]:
    if page.after:
        query = and_(query, lt(key, page.after[0]))
    return await collection.find(query, sort=[(+key, -1)], limit=page.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """One kind of content."""

    find: Callable[[str, Page], Awaitable[Sequence[Any]]]
    key: str
    """The attribute of a document with its sort key."""
    items: Callable[[list[Any]], Awaitable[list[ExportMeResponse]]]
    """Returns the items of documents."""
    size: int = _BATCH
    """Documents that one query reads."""

    def position(self, document: Any) -> Position:
        """Return the sort key of a document."""
        return (getattr(document, self.key),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportHandlers:
    """Exports the data of the caller."""

    stored: ExportRepository
    authors: AuthorProjection
    presenter: Presenter
    users: AccountExportServiceStub

    @MessagePattern(ExportServiceBase.export_me)
    async def export_me(
        self, request: ExportMeRequest, context: Context
    ) -> AsyncGenerator[ExportMeResponse, None]:
        """Yield the caller's data. A cursor consists of the section and the sort key."""
        sections = await self._sections(context)
        name, _, key = request.after.partition("/")
        if request.after and (name not in sections or not key):
            raise _invalid_cursor()
        if not request.after:
            async with aclosing(self._account()) as items:
                async for item in items:
                    yield item
        after: Position = (key,) if key else ()
        for each in list(sections)[list(sections).index(name or "posts") :]:
            async with aclosing(_content(each, sections[each], context.user_id, after)) as items:
                async for item in items:
                    yield item
            after = ()

    async def _account(self) -> AsyncGenerator[ExportMeResponse, None]:
        """Yield the items of `users`."""
        generator: Any = self.users.export_account(ExportAccountRequest())
        async with aclosing(generator) as items:
            async for item in items:
                kind, value = betterproto.which_one_of(item, "item")
                fields: dict[str, Any] = {kind: value}
                yield ExportMeResponse(**fields)

    async def _sections(self, context: Context) -> Mapping[str, _Section]:
        """Return the sections in the order of the export."""
        caller = await self.authors.author_of_caller(context)
        author = author_message(caller.id, caller)

        async def posts(found: list[Post]) -> list[ExportMeResponse]:
            return [ExportMeResponse(post=post_message(post, author)) for post in found]

        async def comments(found: list[Comment]) -> list[ExportMeResponse]:
            return [ExportMeResponse(comment=comment_message(each, author)) for each in found]

        async def likes(found: list[Like]) -> list[ExportMeResponse]:
            return [ExportMeResponse(like=_like_message(like)) for like in found]

        async def notifications(found: list[Notification]) -> list[ExportMeResponse]:
            messages = await self.presenter.notifications(found, context)
            return [ExportMeResponse(notification=message) for message in messages]

        stored = self.stored
        find_posts, find_drafts = partial(stored.posts, PUBLISHED), partial(stored.posts, DRAFT)
        return {
            "posts": _Section(find=find_posts, key="place", items=posts, size=_POSTS),
            "drafts": _Section(find=find_drafts, key="place", items=posts, size=_POSTS),
            "comments": _Section(find=stored.comments, key="id", items=comments),
            "likes": _Section(find=stored.likes, key="place", items=likes),
            "notifications": _Section(find=stored.notifications, key="id", items=notifications),
        }


async def _content(
    name: str, section: _Section, user_id: str, after: Position
) -> AsyncGenerator[ExportMeResponse, None]:
    """Yield the items of a section, with their cursors."""
    find = partial(section.find, user_id)
    async for found in read_pages(find, section.position, size=section.size, after=after):
        items = await section.items(found)
        for document, item in zip(found, items, strict=True):
            item.cursor = f"{name}/{getattr(document, section.key)}"
            yield item


def _like_message(like: Like) -> LikeMessage:
    return LikeMessage(post_id=like.post_id, liked_at=from_micros(time_of_key(like.place)))


def _invalid_cursor() -> ServiceError:
    message = "The cursor does not belong to an export. Start again without it."
    return invalid_field(reasons.CURSOR_INVALID, "after", "cursor", message)
