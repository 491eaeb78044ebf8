"""Typed clients: the base class of every generated `…ServiceStub`."""

from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol, TypeVar

import betterproto

__all__ = ["Channel", "ServiceStub"]

T = TypeVar("T", bound=betterproto.Message)


class Channel(Protocol):
    """Sends the calls of a stub; `route` is `/PACKAGE.SERVICE/METHOD`, `budget` is in seconds."""

    def unary(
        self, route: str, request: betterproto.Message, response: type[T], budget: float | None
    ) -> Awaitable[T]:
        """Call a method with one response."""

    def stream(
        self, route: str, request: betterproto.Message, response: type[T], budget: float | None
    ) -> AsyncIterator[T]:
        """Call a method with a stream of responses."""


class ServiceStub(betterproto.ServiceStub):
    """betterproto's stub without the steps of a gRPC stream, which take as long as the call."""

    def __init__(self, channel: Channel, *, timeout: float | None = None) -> None:
        self.channel: Any = channel
        self.timeout = timeout

    def _unary_unary(  # type: ignore[override]  # an awaitable that need not be a coroutine
        self,
        route: str,
        request: betterproto.Message,
        response_type: type[T],
        *,
        timeout: float | None = None,
        **_of_grpc: object,
    ) -> Awaitable[T]:
        timeout = self.timeout if timeout is None else timeout
        response: Awaitable[T] = self.channel.unary(route, request, response_type, timeout)
        return response

    def _unary_stream(  # type: ignore[override]  # an iterator that need not be a generator
        self,
        route: str,
        request: betterproto.Message,
        response_type: type[T],
        *,
        timeout: float | None = None,
        **_of_grpc: object,
    ) -> AsyncIterator[T]:
        timeout = self.timeout if timeout is None else timeout
        responses: AsyncIterator[T] = self.channel.stream(route, request, response_type, timeout)
        return responses
