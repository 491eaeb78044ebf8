"""Typed clients. Copied to gen/, where every `…ServiceStub` is one of these."""

from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol, TypeVar

import betterproto

__all__ = ["Channel", "ServiceStub"]

T = TypeVar("T", bound=betterproto.Message)


class Channel(Protocol):
    """Carries the calls of a stub; `route` is `/PACKAGE.SERVICE/METHOD`, `budget` in seconds."""

    def unary(
        self, route: str, request: betterproto.Message, response: type[T], budget: float | None
    ) -> Awaitable[T]:
        """Call a method that answers once."""

    def stream(
        self, route: str, request: betterproto.Message, response: type[T], budget: float | None
    ) -> AsyncIterator[T]:
        """Call a method that answers with a stream."""


class ServiceStub(betterproto.ServiceStub):
    """betterproto's stub without the steps of a gRPC stream, which cost as much as the call."""

    def __init__(self, channel: Channel, *, timeout: float | None = None) -> None:
        self.channel: Any = channel
        self.timeout = timeout

    def _unary_unary(  # type: ignore[override]  # an awaitable, if no coroutine
        self,
        route: str,
        request: betterproto.Message,
        response_type: type[T],
        *,
        timeout: float | None = None,
        **_of_grpc: object,
    ) -> Awaitable[T]:
        timeout = self.timeout if timeout is None else timeout
        answer: Awaitable[T] = self.channel.unary(route, request, response_type, timeout)
        return answer

    def _unary_stream(  # type: ignore[override]  # as above
        self,
        route: str,
        request: betterproto.Message,
        response_type: type[T],
        *,
        timeout: float | None = None,
        **_of_grpc: object,
    ) -> AsyncIterator[T]:
        timeout = self.timeout if timeout is None else timeout
        answers: AsyncIterator[T] = self.channel.stream(route, request, response_type, timeout)
        return answers
