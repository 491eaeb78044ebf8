"""Decorators that tie a handler to the contract: name and types are never typed twice."""

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


def MessagePattern(method: Callable[..., Any]) -> Callable[[T], T]:  # the field's name for it
    """Make an async method the handler of an rpc, given by its generated base class:

    `@MessagePattern(PostsServiceBase.create_post)`

    The handler of an rpc that streams is an async generator.
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
    """Make an async method a consumer of an event: `@EventPattern(UserRegistered)`.

    An event whose version is not higher than that of an earlier handled event of the same subject
    is dropped. With `late` the method is called for it as well, with `context.late` set.
    """

    def mark(
        handler: Callable[[Self, In, Context], Awaitable[None]],
    ) -> Callable[[Self, In, Context], Awaitable[None]]:
        setattr(handler, _EVENT, event)
        setattr(handler, _LATE, late)
        return handler

    return mark


def method_handler(function: object) -> str | None:
    """Return what a method handler handles, as `Method.handler` names it; None for others."""
    return getattr(function, _METHOD, None)


def event_type(function: object) -> type[betterproto.Message] | None:
    """Return the event that a handler consumes; None for others."""
    return getattr(function, _EVENT, None)


def handles_late(function: object) -> bool:
    """Return whether a consumer also takes events that come after a later one of their subject."""
    return getattr(function, _LATE, False)
