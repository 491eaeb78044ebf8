"""The one place where a message meets its handler."""

import asyncio
import hashlib
import inspect
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any

import betterproto
import structlog
from uuid_utils import uuid7

from postbus.bus.v1 import Event, Outcome
from postbus.registry import EVENTS, METHODS, Access, EventType, Idempotency, Method
from shared.context import Context, use_context
from shared.errors import Code, ServiceError, internal
from shared.identity import Caller, TokenVerifier, token_missing
from shared.messagebus.bus import Failure
from shared.messagebus.envelope import (
    completed_reply,
    deadline_exceeded,
    error_reply,
    payload_reply,
    read_request,
)
from shared.messagebus.patterns import event_type, method_handler
from shared.messagebus.statistics import About, Statistics
from shared.timelimit import TimeLimit
from shared.trace import trace_id, valid_traceparent
from shared.wire import decode, encode, from_upb, parse, require_valid
from shared.work import Operation, Perform

__all__ = ["ContractMismatchError", "Dispatcher"]

_log = structlog.get_logger()
EVERY_WORKER = "bus"
"""Methods of the package postbus.bus are served by each worker for itself."""
_MAX_BUDGET = 60.0
"""No call runs longer, in seconds, whatever its caller asks for."""
_MAX_REPLY_BYTES = 8 * 2**20
_EVENT_BUDGET = 30.0
_MAY_PASS = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.DEADLINE_EXCEEDED)
"""What may go better another time."""

Handler = Callable[[Any, Context], Any]
"""A coroutine function, or an async generator function where the method streams."""


class ContractMismatchError(Exception):
    """The handlers of a worker are not those that the contract asks for."""


class Dispatcher:
    """Decodes, verifies, validates, runs the handler, and turns what it raises into an Error.

    `handlers` are objects whose methods carry `@MessagePattern` or `@EventPattern`. Raises
    ContractMismatchError, with names, unless they serve exactly the methods of `worker`. Methods
    that change something, and consumers of events, run as units of work, by `perform`.
    """

    def __init__(
        self, worker: str, handlers: Iterable[object], verifier: TokenVerifier, perform: Perform
    ) -> None:
        self._worker = worker
        self._perform = perform
        self._verifier = verifier
        self._methods: dict[str, tuple[Method, Handler]] = {}
        self._events: dict[str, tuple[EventType, Handler]] = {}
        self.statistics = Statistics()
        about = About(worker, self.statistics, lambda: self.routes, lambda: self.events)
        owners = [*handlers, about]
        for owner in owners:
            for _, function in inspect.getmembers(owner, _is_handler):
                self._add(function)
        _check(worker, owners, self._methods)

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
        for route, method in _routes(self._worker).items():
            if method.handler == handles:
                if method.streams != inspect.isasyncgenfunction(function):
                    raise ContractMismatchError(f"{route}: an async generator is for streams only")
                _add_once(self._methods, route, (method, function))
        if event is not None:
            known = next((known for known in EVENTS.values() if known.message is event), None)
            if known is None:
                raise ContractMismatchError(f"{event.__name__} is not an event of the contract")
            _add_once(self._events, known.name, (known, function))

    def answer(
        self, route: str, body: bytes
    ) -> Coroutine[Any, Any, bytes] | AsyncGenerator[bytes, None]:
        """Return the encoded Reply to an encoded Request, or the stream of them."""
        method, _ = self._methods.get(route, (None, None))
        if method is not None and method.streams:
            return self.replies(route, body)
        return self.reply(route, body)

    async def reply(self, route: str, body: bytes) -> bytes:
        """Return the encoded Reply to an encoded Request."""
        traceparent, began, code = "", 0.0, Code.UNSPECIFIED
        try:
            request = read_request(body)
            traceparent = valid_traceparent(request.traceparent)
            handler, message, context = self._begin(route, request, traceparent)
            began = self.statistics.begin(route, request.sent_unix_ms / 1000)
            if operation := _operation(self._methods[route][0], request, context):
                payload = await _run(self._in_work(operation, handler), message, context)
            else:
                payload = _payload(await _run(handler, message, context))
            return payload_reply(payload)
        except ServiceError as error:
            code = error.code
            return error_reply(error, trace_id(traceparent))
        except asyncio.CancelledError:
            code = Code.CANCELLED
            raise
        except Exception:  # noqa: BLE001  # the edge: a handler may raise anything
            code = Code.INTERNAL
            _log.exception("request.failed", method=route, trace_id=trace_id(traceparent))
            return error_reply(internal(), trace_id(traceparent))
        finally:
            if began:
                self.statistics.end(route, began, code)

    async def replies(self, route: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """Yield the encoded Replies of a stream, the last of which tells of its end."""
        traceparent, sequence, began, code = "", 0, 0.0, Code.UNSPECIFIED
        try:
            request = read_request(body)
            traceparent = valid_traceparent(request.traceparent)
            handler, message, context = self._begin(route, request, traceparent)
            began = self.statistics.begin(route, request.sent_unix_ms / 1000)
            async with aclosing(_run_stream(handler, message, context)) as responses:
                async for response in responses:
                    sequence += 1
                    yield payload_reply(_payload(response), sequence)
            yield completed_reply(sequence + 1)
        except ServiceError as error:
            code = error.code
            yield error_reply(error, trace_id(traceparent))
        except Exception:  # noqa: BLE001  # the edge, as above
            code = Code.INTERNAL
            _log.exception("request.failed", method=route, trace_id=trace_id(traceparent))
            yield error_reply(internal(), trace_id(traceparent))
        finally:
            if began:
                self.statistics.end(route, began, code)

    def _begin(
        self, route: str, request: Any, traceparent: str
    ) -> tuple[Handler, betterproto.Message, Context]:
        """Verify and validate; return what is to be run."""
        if route not in self._methods:
            raise ServiceError(Code.UNIMPLEMENTED, "UNKNOWN_METHOD", "The method is not served.")
        method, handler = self._methods[route]
        context = Context(
            name=route,
            caller=self._caller(method, request.access_token),
            access_token=request.access_token,
            deadline=min(request.deadline_unix_ms / 1000, time.time() + _MAX_BUDGET),
            operation_id=request.operation_id,
            correlation_id=request.correlation_id or request.operation_id,
            traceparent=traceparent,
        )
        message = parse(method.request_name, request.payload)
        require_valid(message)
        return handler, from_upb(method.request, message), context

    def _caller(self, method: Method, access_token: str) -> Caller | None:
        """Verify the token again: whoever reaches the broker could name any user."""
        if access_token:
            return self._verifier.verify(access_token)
        if method.access is Access.USER:
            raise token_missing()
        return None

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
                away=error.code is Code.UNAVAILABLE,
            )
        except Exception as error:  # noqa: BLE001  # the edge, as above
            _log.exception("event.failed", event_type=name)
            return Failure(reason="INTERNAL", message=type(error).__name__, retry=True)
        return None

    async def _consume(self, event: Event) -> None:
        if event.type not in self._events:
            raise ServiceError(Code.UNIMPLEMENTED, "UNKNOWN_EVENT", "The event is not consumed.")
        known, handler = self._events[event.type]
        context = Context(
            name=event.type,
            deadline=time.time() + _EVENT_BUDGET,
            operation_id=event.id,
            correlation_id=event.correlation_id or event.id,
            traceparent=valid_traceparent(event.traceparent),
        )
        consumer = f"{self._worker}.{event.type}"
        operation = Operation(
            key=Operation.name("event", consumer, event.id),
            at_once=True,
            subject=Operation.name(consumer, event.subject),
            version=event.version,
        )
        message = decode(known.message, event.data)
        began, code = self.statistics.begin(event.type, event.time.timestamp()), Code.INTERNAL
        try:
            await _run(self._in_work(operation, handler), message, context)
            code = Code.UNSPECIFIED
        except ServiceError as error:
            code = error.code
            raise
        finally:
            self.statistics.end(event.type, began, code)

    def _in_work(self, operation: Operation, handler: Handler) -> Handler:
        """Make a handler a unit of work; it returns the payload."""

        async def perform(message: betterproto.Message, context: Context) -> bytes:
            async def handle() -> bytes:
                context.calls = 0
                response = await handler(message, context)
                return b"" if response is None else _payload(response)

            return await self._perform(operation, handle)

        return perform


def _operation(method: Method, request: Any, context: Context) -> Operation | None:
    """Return what the call does once; None if it changes nothing, or has no name."""
    if method.idempotency is Idempotency.NO_SIDE_EFFECTS:
        return None
    caller = context.caller.user_id if context.caller else ""
    return Operation(
        key=Operation.name("call", method.name, caller, request.operation_id or str(uuid7())),
        fingerprint=hashlib.sha256(request.payload).digest(),
        secret=method.secret_response,
    )


async def _run(handler: Handler, message: betterproto.Message, context: Context) -> Any:
    """Run `handler` until it is done or the deadline passes; past it, don't begin."""
    remaining = context.remaining
    if remaining <= 0:
        raise deadline_exceeded(Outcome.NO_EFFECT)
    limit = TimeLimit(remaining)
    try:
        with limit, use_context(context):
            return await handler(message, context)
    except TimeoutError:
        if limit.expired:
            raise deadline_exceeded() from None
        raise


async def _run_stream(
    handler: Handler, message: betterproto.Message, context: Context
) -> AsyncGenerator[Any, None]:
    """Yield what `handler` yields until it is done or the deadline passes."""
    responses = handler(message, context)
    async with aclosing(responses):
        while context.remaining > 0:
            limit = TimeLimit(context.remaining)
            try:
                with limit, use_context(context):
                    response = await anext(responses)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if not limit.expired:
                    raise
                break
            yield response
    raise deadline_exceeded()


def _payload(response: betterproto.Message) -> bytes:
    payload = encode(response)
    if len(payload) > _MAX_REPLY_BYTES:  # the broker would close the channel, and with it all
        raise ServiceError(
            Code.OUT_OF_RANGE, "REPLY_TOO_LARGE", "The answer is too large: ask for less."
        )
    return payload


def _add_once(handlers: dict[str, Any], name: str, handler: Any) -> None:
    if name in handlers:
        raise ContractMismatchError(f"{name} has two handlers")
    handlers[name] = handler


def _is_handler(member: object) -> bool:
    return inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)


def _routes(worker: str) -> dict[str, Method]:
    """The routes of `worker`: its own methods, and under its name those of every worker."""
    own = {method.name: method for method in METHODS.values() if method.worker == worker}
    every = {f"{m.name}.{worker}": m for m in METHODS.values() if m.worker == EVERY_WORKER}
    return own | every


def _check(worker: str, handlers: Iterable[object], served: Iterable[str]) -> None:
    missing = sorted(_routes(worker).keys() - set(served))
    ours = {method.handler for method in _routes(worker).values()}
    foreign = sorted(
        handles
        for owner in handlers
        for _, function in inspect.getmembers(owner, _is_handler)
        if (handles := method_handler(function)) and handles not in ours
    )
    if missing or foreign:
        raise ContractMismatchError(
            f"worker {worker!r}: methods without a handler: {missing or 'none'}; "
            f"handlers of methods that are not its own: {foreign or 'none'}"
        )
