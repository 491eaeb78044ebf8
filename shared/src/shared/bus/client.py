"""Typed clients: the generated stubs over the bus, and typed events."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, nullcontext
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import NAMESPACE_OID, uuid5

import betterproto
from uuid_utils import uuid7

from postbus.bus.v1 import Event
from postbus.registry import EVENTS, METHODS, EventType, Idempotency, Method
from shared.bus.concurrency_limit import current_slot
from shared.bus.envelope import Call
from shared.bus.message_bus import MessageBus
from shared.context import current_context
from shared.errors import Outcome, ServiceError, deadline_exceeded, internal
from shared.outbox.unit_of_work import current_unit_of_work
from shared.trace import child_traceparent, new_traceparent
from shared.wire import decode, encode

__all__ = ["ServiceChannel", "call_method", "publish"]

M = TypeVar("M", bound=betterproto.Message)

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
        outcome = error.outcome
    return await _call_again(bus, route, call, outcome)


async def _call_again(bus: MessageBus, route: str, call: Call, outcome: Outcome) -> bytes:
    """Call again; an error has the outcome UNKNOWN if one try, or the call before, had it."""
    last = time.monotonic() + min(call.remaining, _RETRY_SECONDS)
    delay = _RETRY_DELAY
    while True:
        await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
        delay *= 2
        try:
            return await bus.call(route, call)
        except ServiceError as error:
            if outcome == Outcome.UNKNOWN:
                error.outcome = outcome
            outcome = error.outcome
            running = error.reason == "OPERATION_RUNNING"  # what was sent before the break
            if not (running or error.reason in _BROKEN) or time.monotonic() + delay > last:
                raise


class ServiceChannel:
    """What a generated stub calls through: `PostsServiceStub(ServiceChannel(bus))`.

    A call made while serving another carries its identity and trace, and at most the time that is
    left of its budget. `worker` addresses a method that each worker serves for itself.
    """

    def __init__(self, bus: MessageBus, *, worker: str | None = None) -> None:
        self._bus = bus
        self._suffix = f".{worker}" if worker else ""

    async def unary(
        self, route: str, request: betterproto.Message, response: type[M], budget: float | None
    ) -> M:
        """Call a method and return its response; raises ServiceError. `budget` in seconds."""
        method = _METHODS_BY_ROUTE[route]
        call = _new_call(request, method, budget)
        calling = call_method(self._bus, method, call, method.name + self._suffix)
        with current_slot() or nullcontext():
            payload = await calling
        if context := current_context():
            context.learn_revision(call.caller_revision)
        return _decoded(response, payload)

    async def stream(
        self, route: str, request: betterproto.Message, response: type[M], budget: float | None
    ) -> AsyncGenerator[M, None]:
        """Call a method that streams and yield its responses; raises ServiceError."""
        method = _METHODS_BY_ROUTE[route]
        call, seat = _new_call(request, method, budget), current_slot()
        async with aclosing(self._bus.stream(method.name + self._suffix, call)) as payloads:
            while True:
                with seat or nullcontext():
                    payload = await anext(payloads, None)
                if payload is None:
                    return
                yield _decoded(response, payload)


def _decoded(response: type[M], payload: bytes) -> M:
    """Return a response; INTERNAL, with an unknown outcome, if the service sent another message."""
    try:
        return decode(response, payload)
    except ServiceError:
        raise internal() from None


def _new_call(request: betterproto.Message, method: Method, budget: float | None) -> Call:
    """A call made while another is served belongs to it: made again, it has no second effect."""
    payload = encode(request)
    deadline = time.time() + (method.timeout if budget is None else budget)
    context = current_context()
    if context is None:
        return Call.new(payload, deadline=deadline, traceparent=new_traceparent())
    if context.remaining <= 0:
        raise deadline_exceeded()
    context.calls += 1
    context.changed |= method.idempotency is not Idempotency.NO_SIDE_EFFECTS
    name = f"{context.name} {context.operation_id} {method.name} {context.calls}"
    return Call.new(
        payload,
        deadline=min(deadline, context.deadline),
        access_token=context.access_token,
        operation_id=str(uuid5(NAMESPACE_OID, name)),
        traceparent=child_traceparent(context.traceparent),
        correlation_id=context.correlation_id,
        caller_revision=context.caller_revision,
    )


async def publish(message: betterproto.Message) -> None:
    """Publish an event as part of the current unit of work: it goes out if and once that commits.

    Its source is the event's worker. RuntimeError outside of a handler that may change something.
    """
    work, context = current_unit_of_work(), current_context()
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
