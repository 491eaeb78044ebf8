"""Decorators that bind a handler to a method or event of the contract, with checked types."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, overload

import betterproto

from shared.context import Context

__all__ = ["EventPattern", "MessagePattern", "event_type", "handles_late", "method_handler"]

In = TypeVar("In", bound=betterproto.Message)
Out = TypeVar("Out", bound=betterproto.Message)
Self = TypeVar("Self")
T = TypeVar("T")

_METHOD = "__postbus_method__"
_EVENT = "__postbus_event__"
_LATE = "__postbus_late__"


@overload
def MessagePattern(
    method: Callable[[Any, In], Awaitable[Out]],
) -> Callable[
    [Callable[[Self, In, Context], Awaitable[Out]]],
    Callable[[Self, In, Context], Awaitable[Out]],
]: ...


@overload
def MessagePattern(
    method: Callable[[Any, In], AsyncIterator[Out]],
) -> Callable[
    [Callable[[Self, In, Context], AsyncIterator[Out]]],
    Callable[[Self, In, Context], AsyncIterator[Out]],
]: ...


def MessagePattern(method: Callable[..., Any]) -> Callable[[T], T]:  # the name NestJS uses
    """Make an async method the handler of an rpc, named by the method of the generated base class.

    @MessagePattern(PostsServiceBase.get_post)
    async def get_post(self, request: GetPostRequest, context: Context) -> GetPostResponse:
        post = await self.posts.get(request.id)
        return GetPostResponse(post=await self.presenter.post(post, context))

    The handler of a streaming rpc is an async generator. A handler fails by ServiceError; any other
    exception is logged, and the caller gets INTERNAL.
    """

    def mark(handler: T) -> T:
        setattr(handler, _METHOD, f"{method.__module__}.{method.__qualname__}")
        return handler

    return mark


def EventPattern(
    event: type[In], *, late: bool = False
) -> Callable[
    [Callable[[Self, In, Context], Awaitable[None]]],
    Callable[[Self, In, Context], Awaitable[None]],
]:
    """Make an async method a consumer of an event.

    @EventPattern(PostDeleted)
    async def post_deleted(self, event: PostDeleted, _context: Context) -> None:
        await self.comments.erase("post_id", event.post_id, limit=100)

    The consumer of each worker has its own durable queue. After a failure the event is retried; see
    `Failure`. An event whose version is not higher than that of an earlier event of its subject is
    dropped. With `late` the method is called for it too, with `context.late` set.
    """

    def mark(
        handler: Callable[[Self, In, Context], Awaitable[None]],
    ) -> Callable[[Self, In, Context], Awaitable[None]]:
        setattr(handler, _EVENT, event)
        setattr(handler, _LATE, late)
        return handler

    return mark


def method_handler(function: object) -> str | None:
    """Return the `Method.handler` of a function with @MessagePattern, else None."""
    return getattr(function, _METHOD, None)


def event_type(function: object) -> type[betterproto.Message] | None:
    """Return the message class of a function with @EventPattern, else None."""
    return getattr(function, _EVENT, None)


def handles_late(function: object) -> bool:
    """Return whether a consumer is called for late events too; see EventPattern."""
    return getattr(function, _LATE, False)
