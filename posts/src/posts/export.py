"""Export of the caller's data: that of `users` first, then the content that `posts` stores."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import betterproto
from odmantic.query import and_, eq

from postbus import reasons
from postbus.posts.v1 import ExportMeRequest, ExportMeResponse, ExportServiceBase
from postbus.posts.v1 import Like as LikeMessage
from postbus.users.v1 import AccountExportServiceStub, ExportAccountRequest
from posts.authors import AuthorProjection, author_message
from posts.models import DRAFT, PUBLISHED, Author, Comment, Like, Post
from posts.notification_repository import NotificationRepository
from posts.presenter import Presenter, comment_message, post_message
from posts.repository import Repository
from posts.stored_times import from_micros, time_of_key
from shared.bus import MessagePattern
from shared.context import Context
from shared.data.pages import Page, Position, read_pages
from shared.errors import ServiceError, invalid_field

__all__ = ["ExportHandlers"]

_BATCH: Final = 100
"""Documents that one query reads; an export keeps them in memory."""
_POSTS: Final = 20
"""Posts that one query reads: a post has up to 400 kB."""


_SECTIONS: Final = {
    "posts": "place",
    "drafts": "place",
    "comments": "id",
    "likes": "place",
    "notifications": "id",
}
"""The kinds of content in the order of the export, with the attribute that each is sorted by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportHandlers:
    """Exports the data of the caller."""

    posts: Repository[Post]
    comments: Repository[Comment]
    likes: Repository[Like]
    notifications: NotificationRepository
    authors: AuthorProjection
    presenter: Presenter
    users: AccountExportServiceStub

    @MessagePattern(ExportServiceBase.export_me)
    async def export_me(
        self, request: ExportMeRequest, context: Context
    ) -> AsyncGenerator[ExportMeResponse, None]:
        """Yield the caller's data. A cursor consists of the section and the sort key."""
        caller = await self.authors.author_of_caller(context)
        first, _, key = request.after.partition("/")
        if request.after and (first not in _SECTIONS or not key):
            raise _invalid_cursor()
        if not request.after:
            async with aclosing(self._account()) as items:
                async for item in items:
                    yield item
        after: Position = (key,) if key else ()
        for section in list(_SECTIONS)[list(_SECTIONS).index(first or "posts") :]:
            async with aclosing(self._content(section, caller, after, context)) as items:
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

    async def _content(
        self, section: str, caller: Author, after: Position, context: Context
    ) -> AsyncGenerator[ExportMeResponse, None]:
        """Yield the items of a section, the latest first, with their cursors."""
        key, size = _SECTIONS[section], _POSTS if section in ("posts", "drafts") else _BATCH
        find = partial(self._find, section, caller.id)
        pages = read_pages(find, lambda each: (getattr(each, key),), size=size, after=after)
        async for found in pages:
            items = await self._items(section, found, caller, context)
            for document, item in zip(found, items, strict=True):
                item.cursor = f"{section}/{getattr(document, key)}"
                yield item

    async def _find(self, section: str, user_id: str, page: Page) -> Sequence[Any]:
        """Return the documents on a page of a section."""
        match section:
            case "comments":
                return await self.comments.latest(page, Comment.id, eq(Comment.author_id, user_id))
            case "likes":
                return await self.likes.latest(page, Like.place, eq(Like.user_id, user_id))
            case "notifications":
                return await self.notifications.of_user(user_id, page)
        status = DRAFT if section == "drafts" else PUBLISHED
        own = and_(eq(Post.author_id, user_id), eq(Post.status, status))
        return await self.posts.latest(page, Post.place, own)

    async def _items(
        self, section: str, found: Sequence[Any], caller: Author, context: Context
    ) -> list[ExportMeResponse]:
        """Return an item for each document of a section."""
        author = author_message(caller.id, caller)
        match section:
            case "comments":
                return [ExportMeResponse(comment=comment_message(each, author)) for each in found]
            case "likes":
                return [ExportMeResponse(like=_like_message(like)) for like in found]
            case "notifications":
                messages = await self.presenter.notifications(found, context)
                return [ExportMeResponse(notification=message) for message in messages]
        return [ExportMeResponse(post=post_message(post, author)) for post in found]


def _like_message(like: Like) -> LikeMessage:
    return LikeMessage(post_id=like.post_id, liked_at=from_micros(time_of_key(like.place)))


def _invalid_cursor() -> ServiceError:
    message = "The cursor does not belong to an export. Start again without it."
    return invalid_field(reasons.CURSOR_INVALID, "after", "cursor", message)
