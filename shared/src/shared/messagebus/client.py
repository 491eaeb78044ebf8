"""Typed clients: the generated stubs over the bus, and typed events."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self
from uuid import NAMESPACE_OID, uuid5

import betterproto
from uuid_utils import uuid7

from postbus.bus.v1 import Event
from postbus.registry import EVENTS, METHODS, EventType, Idempotency, Method
from shared.context import current_context
from shared.errors import ServiceError
from shared.messagebus.bus import MessageBus
from shared.messagebus.envelope import Call, deadline_exceeded
from shared.messagebus.slots import outside_slot
from shared.trace import child_traceparent, new_traceparent
from shared.wire import decode, encode
from shared.work import current_work

__all__ = ["ServiceChannel", "call_method", "publish"]

_BROKEN: Final = ("CONNECTION_LOST", "NOT_CONNECTED")
_RETRY_DELAY: Final = 0.05
_RETRY_SECONDS: Final = 1.0
_METHODS_BY_ROUTE: Final[Mapping[str, Method]] = {
    method.route: method for method in METHODS.values()
}

_EVENTS_BY_MESSAGE: Final[Mapping[type[betterproto.Message], EventType]] = {
    event.message: event for event in EVENTS.values()
}


async def call_method(bus: MessageBus, method: Method, call: Call, route: str = "") -> bytes:
    """Send `call` and return the payload of the reply; see MessageBus.call.

    Where the broker goes away meanwhile, a method that is safe or idempotent is called again, for
    a second at most and within the budget.
    """
    route = route or method.name
    try:
        return await bus.call(route, call)
    except ServiceError as error:
        if method.idempotency is Idempotency.UNKNOWN or error.reason not in _BROKEN:
            raise
    return await _call_again(bus, route, call)


async def _call_again(bus: MessageBus, route: str, call: Call) -> bytes:
    last = time.monotonic() + min(call.remaining, _RETRY_SECONDS)
    delay = _RETRY_DELAY
    while True:
        await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
        delay *= 2
        try:
            return await bus.call(route, call)
        except ServiceError as error:
            if error.reason not in _BROKEN or time.monotonic() + delay > last:
                raise


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
        return _Call(self._bus, method, method.name + self._suffix, response_type, budget)


class _Call:
    """One call, in the form of grpclib's client stream."""

    def __init__(
        self,
        bus: MessageBus,
        method: Method,
        route: str,
        response_type: type[betterproto.Message],
        budget: float,
    ) -> None:
        self._bus = bus
        self._method = method
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
        self._call = _new_call(encode(message), self._method, self._budget)

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        async with aclosing(self._bus.stream(self._route, self._call)) as payloads:
            while True:
                with outside_slot():
                    payload = await anext(payloads, None)
                if payload is None:
                    return
                yield decode(self._response_type, payload)

    async def recv_message(self) -> Any:
        """Send the request and return the reply; raises ServiceError."""
        with outside_slot():
            payload = await call_method(self._bus, self._method, self._call, self._route)
        return decode(self._response_type, payload)


def _new_call(payload: bytes, method: Method, budget: float) -> Call:
    """A call made while another is served belongs to it: made again, it has no second effect."""
    deadline = time.time() + budget
    context = current_context()
    if context is None:
        return Call.new(payload, deadline=deadline, traceparent=new_traceparent())
    if context.remaining <= 0:
        raise deadline_exceeded()
    context.calls += 1
    name = f"{context.name} {context.operation_id} {method.name} {context.calls}"
    return Call.new(
        payload,
        deadline=min(deadline, context.deadline),
        access_token=context.access_token,
        operation_id=str(uuid5(NAMESPACE_OID, name)),
        traceparent=child_traceparent(context.traceparent),
        correlation_id=context.correlation_id,
    )


async def publish(message: betterproto.Message) -> None:
    """Publish an event as part of the current unit of work: it goes out if and once that commits.

    Its source is the event's worker. RuntimeError outside of a handler that may change something.
    """
    work, context = current_work(), current_context()
    if work is None or context is None:
        raise RuntimeError("publish events in handlers of methods that change something")
    known = _EVENTS_BY_MESSAGE[type(message)]
    work.events.append(
        Event(
            id=str(uuid7()),
            source=known.name.split(".")[1],
            type=known.name,
            subject=getattr(message, known.subject),
            time=datetime.now(UTC),
            data=encode(message),
            traceparent=child_traceparent(context.traceparent),
            version=_version(known, message) if known.aggregate_version else 0,
            correlation_id=context.correlation_id,
            causation_id=context.operation_id,
        )
    )


def _version(known: EventType, message: Any) -> int:
    for name in known.aggregate_version:
        message = getattr(message, name)
    return int(message)
