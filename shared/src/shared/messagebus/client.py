"""Typed clients: the generated stubs over the bus, and typed events."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import betterproto
from uuid_utils.compat import uuid7

from postbus.bus.v1 import Event, Request
from postbus.registry import EVENTS, METHODS, Method
from shared.context import current_context
from shared.messagebus.bus import MessageBus, deadline_exceeded
from shared.trace import child_traceparent
from shared.wire import decode, encode

__all__ = ["ServiceChannel", "publish"]

_METHODS_BY_ROUTE: Mapping[str, Method] = {method.route: method for method in METHODS.values()}


class ServiceChannel:
    """What a generated stub calls through: `PostsServiceStub(ServiceChannel(bus))`.

    A call made while serving another carries its identity and trace, and at most the time that is
    left of its budget. `worker` addresses a method that each worker serves for itself.
    """

    def __init__(self, bus: MessageBus, *, worker: str | None = None) -> None:
        self._bus = bus
        self._suffix = f".{worker}" if worker else ""

    def request(
        self,
        route: str,
        _cardinality: object,
        _request_type: type[betterproto.Message],
        response_type: type[betterproto.Message],
        *,
        timeout: float | None = None,  # betterproto's signature
        **_unused: object,
    ) -> "_Call":
        """Begin a call, as betterproto's stubs do; `timeout` in seconds."""
        method = _METHODS_BY_ROUTE[route]
        budget = method.timeout if timeout is None else timeout
        return _Call(self._bus, method.name + self._suffix, response_type, budget)


class _Call:
    """One call, in the form of grpclib's client stream."""

    def __init__(
        self, bus: MessageBus, route: str, response_type: type[betterproto.Message], budget: float
    ) -> None:
        self._bus = bus
        self._route = route
        self._response_type = response_type
        self._budget = budget

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Nothing is open between sending and receiving."""

    async def send_message(self, message: betterproto.Message, *, end: bool = False) -> None:
        """Keep the request, which is sent when the reply is waited for."""
        self._request = _request(encode(message), self._budget)

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        async with aclosing(self._bus.stream(self._route, self._request)) as payloads:
            async for payload in payloads:
                yield decode(self._response_type, payload)

    async def recv_message(self) -> Any:
        """Send the request and return the reply; raises ServiceError."""
        payload = await self._bus.call(self._route, self._request)
        return decode(self._response_type, payload)


def _request(payload: bytes, budget: float) -> Request:
    deadline = time.time() + budget
    context = current_context()
    if context is None:
        return Request(
            payload=payload,
            deadline_unix_ms=int(deadline * 1000),
            operation_id=str(uuid7()),
            traceparent=child_traceparent(""),
        )
    if context.remaining <= 0:
        raise deadline_exceeded()
    return Request(
        payload=payload,
        deadline_unix_ms=int(min(deadline, context.deadline) * 1000),
        access_token=context.access_token,
        operation_id=str(uuid7()),
        traceparent=child_traceparent(context.traceparent),
    )


async def publish(bus: MessageBus, message: betterproto.Message) -> None:
    """Publish an event: the broker has it when this returns. Its source is the event's worker."""
    known = next(event for event in EVENTS.values() if event.message is type(message))
    context = current_context()
    await bus.publish(
        Event(
            id=str(uuid7()),
            source=known.name.split(".")[1],
            type=known.name,
            subject=getattr(message, known.subject),
            time=datetime.now(UTC),
            data=encode(message),
            traceparent=child_traceparent(context.traceparent if context else ""),
        )
    )
