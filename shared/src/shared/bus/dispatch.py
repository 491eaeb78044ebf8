"""The one place where a message meets its handler."""

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, Protocol

import betterproto
import structlog
from uuid_utils import uuid7

from postbus.bus.v1 import Event
from postbus.registry import EVENTS, EventType
from shared.bus.decorators import event_type, handles_late, method_handler
from shared.bus.envelope import (
    completed_reply,
    error_reply,
    payload_reply,
    read_request,
)
from shared.bus.handler_matching import (
    ContractMismatchError,
    Handler,
    handlers_of,
    require_match,
    routes_of,
)
from shared.bus.handler_metrics import Statistics, WorkerServiceHandlers
from shared.bus.message_bus import Failure
from shared.bus.served_method import ServedMethod, encode_response, run_stream
from shared.context import Context
from shared.errors import Code, Outcome, ServiceError, internal
from shared.identity import Caller, token_missing
from shared.outbox.inbox import Operation, OperationResult
from shared.outbox.unit_of_work import Perform, current_unit_of_work
from shared.trace import trace_id, valid_traceparent
from shared.wire import decode, read_valid

__all__ = ["Dispatcher", "Verifier"]

_log = structlog.get_logger()
_MAX_BUDGET = 60.0
"""No call runs longer, in seconds, whatever its caller asks for."""
_EVENT_BUDGET = 30.0
_MAX_REQUEST_BYTES = 4 * 2**20
"""Larger requests are refused undecoded; the gateway accepts bodies of 2 MiB by default."""
_MAY_PASS = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.DEADLINE_EXCEEDED)
"""What may go better another time."""


class Verifier(Protocol):
    """Verifies access tokens and their sessions: `SessionVerifier` of `shared.runtime`."""

    def verify(self, token: str, *, ended: bool) -> Caller:
        """Return the caller, of a session that has `ended` too; raises ServiceError."""


class Dispatcher:
    """Decodes, verifies, validates, runs the handler, and turns what it raises into an Error.

    `handlers` are objects whose methods carry `@MessagePattern` or `@EventPattern`. Raises
    ContractMismatchError, with names, unless they serve exactly the methods of `worker`. Methods
    that change something, and consumers of events, run as units of work, by `perform`.
    """

    def __init__(
        self, worker: str, handlers: Iterable[object], verifier: Verifier, perform: Perform
    ) -> None:
        self._worker = worker
        self._perform = perform
        self._verifier = verifier
        self._methods: dict[str, ServedMethod] = {}
        self._events: dict[str, tuple[EventType, Handler]] = {}
        self._running: set[str] = set()
        self.statistics = Statistics()
        about = WorkerServiceHandlers(
            worker, self.statistics, lambda: self.routes, lambda: self.events
        )
        owners = [*handlers, about]
        for owner in owners:
            for function in handlers_of(owner):
                self._add(function)
        require_match(worker, owners, self._methods)

    @property
    def routes(self) -> list[str]:
        """The methods that are served."""
        return list(self._methods)

    @property
    def events(self) -> list[str]:
        """The events that are consumed."""
        return list(self._events)

    def _add(self, function: Handler) -> None:
        handles, event = method_handler(function), event_type(function)
        for route, method in routes_of(self._worker).items():
            if method.handler == handles:
                if method.streams != inspect.isasyncgenfunction(function):
                    raise ContractMismatchError(f"{route}: an async generator is for streams only")
                counted = self.statistics.of(route)
                _add_once(self._methods, route, ServedMethod(route, method, function, counted))
        if event is not None:
            known = next((known for known in EVENTS.values() if known.message is event), None)
            if known is None:
                raise ContractMismatchError(f"{event.__name__} is not an event of the contract")
            _add_once(self._events, known.name, (known, function))

    def answer(
        self, route: str, body: bytes
    ) -> Coroutine[Any, Any, bytes] | AsyncGenerator[bytes, None]:
        """Return the encoded Reply to an encoded Request, or the stream of them."""
        served = self._methods.get(route)
        if served is None:
            return _not_served()
        if len(body) > _MAX_REQUEST_BYTES:
            return _too_large()
        return self._replies(served, body) if served.method.streams else self._reply(served, body)

    async def _reply(self, served: ServedMethod, body: bytes) -> bytes:
        traceparent, began, code, context = "", 0.0, 0, None
        try:
            request = read_request(body)
            traceparent = valid_traceparent(request.traceparent)
            began = served.counted.begin(request.sent_unix_ms / 1000)
            context, message = self._begin(served, request, traceparent)
            if operation := served.operation(request, context):
                with context:
                    result = await self._once(operation, served.handler, message, context)
                learned = _learned(context, request)
                return payload_reply(
                    result.reply, replayed=result.replayed, caller_revision=learned
                )
            with context:
                payload = encode_response(await served.handler(message, context))
            return payload_reply(payload, caller_revision=_learned(context, request))
        except ServiceError as error:
            code = error.code
            return _failure(error, context, traceparent)
        except asyncio.CancelledError:
            code = Code.CANCELLED
            raise
        except Exception:  # noqa: BLE001  # the edge: a handler may raise anything
            code = Code.INTERNAL
            _log.exception("request.failed", method=served.name, trace_id=trace_id(traceparent))
            return error_reply(internal(), trace_id(traceparent))
        finally:
            if began:
                served.counted.end(began, code)

    async def _replies(self, served: ServedMethod, body: bytes) -> AsyncGenerator[bytes, None]:
        traceparent, sequence, began, code, context = "", 0, 0.0, 0, None
        try:
            request = read_request(body)
            traceparent = valid_traceparent(request.traceparent)
            began = served.counted.begin(request.sent_unix_ms / 1000)
            context, message = self._begin(served, request, traceparent)
            async with aclosing(run_stream(served.handler, message, context)) as responses:
                async for response in responses:
                    sequence += 1
                    yield payload_reply(encode_response(response), sequence)
            yield completed_reply(sequence + 1)
        except ServiceError as error:
            code = error.code
            yield _failure(error, context, traceparent)
        except Exception:  # noqa: BLE001  # the edge, as above
            code = Code.INTERNAL
            _log.exception("request.failed", method=served.name, trace_id=trace_id(traceparent))
            yield error_reply(internal(), trace_id(traceparent))
        finally:
            if began:
                served.counted.end(began, code)

    def _begin(
        self, served: ServedMethod, request: Any, traceparent: str
    ) -> tuple[Context, betterproto.Message]:
        """Verify and validate.

        Token and session are verified again: any process that reaches the broker could name a user.
        """
        token = request.access_token
        ends_session = served.method.ends_session
        caller = self._verifier.verify(token, ended=ends_session) if token else None
        if caller is None and served.needs_user:
            raise token_missing()
        operation_id = request.operation_id or str(uuid7())
        context = Context(
            name=served.name,
            caller=caller,
            access_token=token,
            deadline=min(request.deadline_unix_ms / 1000, time.time() + _MAX_BUDGET),
            operation_id=operation_id,
            correlation_id=request.correlation_id or operation_id,
            traceparent=traceparent,
            caller_revision=request.caller_revision,
            client_address=request.client_address,
        )
        return context, read_valid(served.method.request, request.payload)

    async def consume(self, body: bytes) -> Failure | None:
        """Run the consumer of an encoded Event once; return why it failed, if it did."""
        name = ""
        try:
            event = decode(Event, body)
            name = event.type
            await self._consume(event)
        except ServiceError as error:
            _log.warning("event.failed", event_type=name, reason=error.reason)
            return Failure(
                reason=error.reason,
                message=error.message,
                retry=error.code in _MAY_PASS,
                dependency_down=error.code is Code.UNAVAILABLE,
            )
        except Exception as error:  # noqa: BLE001  # the edge, as above
            _log.exception("event.failed", event_type=name)
            return Failure(reason="INTERNAL", message=type(error).__name__, retry=True)
        return None

    async def _consume(self, event: Event) -> None:
        if event.type not in self._events:
            raise ServiceError(Code.UNIMPLEMENTED, "UNKNOWN_EVENT", "The event is not consumed.")
        known, handler = self._events[event.type]
        consumer = f"{self._worker}.{event.type}"
        context = Context(
            name=consumer,
            deadline=time.time() + _EVENT_BUDGET,
            operation_id=event.id,
            correlation_id=event.correlation_id or event.id,
            traceparent=valid_traceparent(event.traceparent),
        )
        operation = Operation(
            key=Operation.key_of("event", consumer, event.id),
            begin_immediately=True,
            subject=Operation.key_of(consumer, event.subject),
            version=event.version,
            handles_late=handles_late(handler),
        )
        message = decode(known.message, event.data)
        counted = self.statistics.of(event.type)
        began, code = counted.begin(event.time.timestamp()), Code.INTERNAL
        try:
            with context:
                await self._in_work(operation, handler, message, context)
            code = Code.UNSPECIFIED
        except ServiceError as error:
            code = error.code
            raise
        finally:
            counted.end(began, code)

    async def _once(
        self,
        operation: Operation,
        handler: Handler,
        message: betterproto.Message,
        context: Context,
    ) -> OperationResult:
        """Run an operation once at a time; where another worker runs it, the database waits."""
        if operation.key in self._running:
            raise ServiceError(
                Code.ABORTED,
                "OPERATION_RUNNING",
                "This is being done: ask again, under the same name.",
                retry_after=1,
                outcome=Outcome.UNKNOWN,
            )
        self._running.add(operation.key)
        try:
            return await self._in_work(operation, handler, message, context)
        finally:
            self._running.discard(operation.key)

    def _in_work(
        self,
        operation: Operation,
        handler: Handler,
        message: betterproto.Message,
        context: Context,
    ) -> Awaitable[OperationResult]:
        """Run a handler as a unit of work; return the payload."""

        async def handle() -> bytes:
            unit = current_unit_of_work()
            context.calls, context.late = 0, unit is not None and unit.late
            response = await handler(message, context)
            return b"" if response is None else encode_response(response)

        return self._perform(operation, handle)


def _learned(context: Context, request: Any) -> int:
    """Return the caller's revision if it is higher than the Request says, else 0."""
    known = context.caller_revision
    return known if known > request.caller_revision else 0


def _failure(error: ServiceError, context: Context | None, traceparent: str) -> bytes:
    """Return the encoded Reply of a handler that failed; what it has called stays done."""
    if context is not None and context.changed:
        error.outcome = Outcome.try_value(Outcome.UNKNOWN)
    return error_reply(error, trace_id(traceparent))


async def _not_served() -> bytes:
    error = ServiceError(Code.UNIMPLEMENTED, "UNKNOWN_METHOD", "The method is not served.")
    return error_reply(error)


async def _too_large() -> bytes:
    error = ServiceError(
        Code.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE", "The request is larger than 4 MiB."
    )
    return error_reply(error)


def _add_once(handlers: dict[str, Any], name: str, handler: Any) -> None:
    if name in handlers:
        raise ContractMismatchError(f"{name} has two handlers")
    handlers[name] = handler
