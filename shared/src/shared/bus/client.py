"""Typed access to the bus: calls by generated stubs, published events, subscriptions to events."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing, nullcontext
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Final, TypeVar

import betterproto
from uuid_utils import uuid7

from postbus import reasons
from postbus.bus.v1 import Event
from postbus.registry import EVENTS, METHODS, EventType, Idempotency, Method
from shared.bus.call import Call
from shared.bus.concurrency_limit import current_slot
from shared.bus.message_bus import EventHandler, MessageBus
from shared.bus.reply import CallResult
from shared.context import current_context
from shared.errors import Outcome, ServiceError, deadline_exceeded, internal
from shared.limited_log import LimitedLog
from shared.outbox.unit_of_work import current_unit_of_work
from shared.trace import child_traceparent, new_traceparent
from shared.wire import decode, encode, message_class, parse_as

__all__ = ["ServiceChannel", "call_method", "publish", "typed_handler"]

M = TypeVar("M", bound=betterproto.Message)

_Event: Final[Any] = message_class("postbus.bus.v1.Event")
_NO_SLOT: Final = nullcontext()
_CONNECTION_REASONS: Final = (reasons.CONNECTION_LOST, reasons.NOT_CONNECTED, reasons.WORKER_LOST)
_RETRY_DELAY: Final = 0.05
"""Seconds before the first retry; doubled for each further one."""
_RETRY_SECONDS: Final = 1.0
"""Longest time from the first failure to the last retry."""
_METHODS_BY_ROUTE: Final[Mapping[str, Method]] = {
    method.route: method for method in METHODS.values()
}

_EVENTS_BY_MESSAGE: Final[Mapping[type[betterproto.Message], EventType]] = {
    event.message: event for event in EVENTS.values()
}


async def call_method(bus: MessageBus, method: Method, call: Call, route: str = "") -> CallResult:
    """Send `call` and return its result; see MessageBus.call. `route` is by default the method's.

    If the connection to the broker or the worker is lost, the call of a safe or idempotent method
    is retried, for a second at most and within its budget.
    """
    route = route or method.name
    try:
        return await bus.call(route, call)
    except ServiceError as error:
        if method.idempotency is Idempotency.UNKNOWN or error.reason not in _CONNECTION_REASONS:
            raise
        outcome = error.outcome
    return await _retry(bus, route, call, outcome)


async def _retry(bus: MessageBus, route: str, call: Call, outcome: Outcome) -> CallResult:
    """Repeat a failed call. The outcome is UNKNOWN unless every attempt had no effect."""
    last = time.monotonic() + min(call.remaining, _RETRY_SECONDS)
    delay = _RETRY_DELAY
    while True:
        await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
        delay *= 2
        try:
            return await bus.call(route, call)
        except ServiceError as error:
            if outcome != Outcome.NO_EFFECT:
                error.outcome = Outcome.try_value(Outcome.UNKNOWN)
            outcome = error.outcome
            running = error.reason == reasons.OPERATION_RUNNING  # an earlier attempt has arrived
            transient = running or error.reason in _CONNECTION_REASONS
            if not transient or time.monotonic() + delay > last:
                raise


class ServiceChannel:
    """Sends the calls of a generated stub over the bus.

    users = UsersServiceStub(ServiceChannel(bus))
    response = await users.batch_get_users(BatchGetUsersRequest(ids=ids))

    A call made inside a handler inherits its caller, its trace and its remaining budget. `worker`
    selects the worker for the methods of postbus.bus, which every worker serves.
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
        with current_slot() or _NO_SLOT:
            result = await call_method(self._bus, method, call, method.name + self._suffix)
        if result.caller_revision and (context := current_context()):
            context.raise_revision(result.caller_revision)
        return _decoded(response, result.payload)

    async def stream(
        self, route: str, request: betterproto.Message, response: type[M], budget: float | None
    ) -> AsyncGenerator[M, None]:
        """Call a streaming method and yield its responses; raises ServiceError."""
        method = _METHODS_BY_ROUTE[route]
        call, slot = _new_call(request, method, budget), current_slot()
        async with aclosing(self._bus.stream(method.name + self._suffix, call)) as payloads:
            while True:
                with slot or _NO_SLOT:
                    payload = await anext(payloads, None)
                if payload is None:
                    return
                yield _decoded(response, payload)


def _decoded(response: type[M], payload: bytes) -> M:
    """Return a response; INTERNAL with outcome UNKNOWN if the worker has sent malformed bytes."""
    try:
        return decode(response, payload)
    except ServiceError:
        raise internal() from None


def _new_call(request: betterproto.Message, method: Method, budget: float | None) -> Call:
    """Return a call. Inside a handler it is a nested call of the current call.

    Its operation id is then derived from that of the current call: if the current call is repeated,
    the nested calls have no second effect.
    """
    payload = encode(request)
    seconds = method.timeout if budget is None else budget
    context = current_context()
    if context is None:
        return Call.new(payload, budget=seconds, traceparent=new_traceparent())
    remaining = context.remaining
    if remaining <= 0:
        raise deadline_exceeded()
    return Call.new(
        payload,
        budget=min(seconds, remaining),
        access_token=context.access_token,
        operation_id=context.nested_operation_id(method.name, changes=method.has_side_effects),
        traceparent=child_traceparent(context.traceparent),
        correlation_id=context.correlation_id,
        caller_revision=context.caller_revision,
        metadata=context.metadata,
    )


async def publish(message: betterproto.Message) -> None:
    """Add an event to the current unit of work. It is published if and only if the unit commits.

    await self.posts.delete(post)
    await publish(PostDeleted(post_id=post.id, author_id=post.author_id, version=post.version + 1))

    Raises RuntimeError outside a handler, and in handlers of methods without side effects.
    """
    unit, context = current_unit_of_work(), current_context()
    if unit is None or context is None:
        raise RuntimeError("events can be published only in handlers of methods with side effects")
    event = _EVENTS_BY_MESSAGE[type(message)]
    version = event.aggregate_version
    unit.events.append(
        Event(
            id=str(uuid7()),
            source=event.name.split(".")[1],
            type=event.name,
            subject=getattr(message, event.subject),
            time=datetime.now(UTC),
            data=encode(message),
            traceparent=child_traceparent(context.traceparent),
            version=attrgetter(".".join(version))(message) if version else 0,
            correlation_id=context.correlation_id,
            causation_id=context.operation_id,
        )
    )


def typed_handler(
    handle: Callable[[M], None], messages: Collection[type[M]]
) -> tuple[list[str], EventHandler]:
    """Return the types and the handler with which to subscribe to events with these messages.

    await bus.subscribe(*typed_handler(self._on_profile_updated, [UserProfileUpdated]))

    `handle` gets the decoded message. An event that is malformed, or has the routing key of another
    type, is logged and dropped.
    """
    types = {_EVENTS_BY_MESSAGE[message].name: message for message in messages}
    log = LimitedLog()

    async def handler(body: bytes) -> None:
        try:
            event: Any = parse_as(_Event, body)
            message = decode(types[event.type], event.data)
        except (ServiceError, KeyError):
            log.write(logging.WARNING, "event.malformed")
            return
        handle(message)

    return list(types), handler
