"""Dispatch calls and events to their handlers."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

import betterproto
from uuid_utils import uuid7

from postbus import reasons
from shared.access_tokens import LEEWAY_SECONDS, Caller, token_missing
from shared.bus.declared_reasons import DeclaredReasons
from shared.bus.envelope import (
    budget_of,
    completed_reply,
    error_reply,
    payload_reply,
    read_request,
    with_metadata,
)
from shared.bus.event_dispatch import EventDispatcher
from shared.bus.handler_matching import consumed_events, served_methods
from shared.bus.handler_metrics import Statistics, WorkerServiceHandlers
from shared.bus.message_bus import Failure
from shared.bus.served_method import (
    ServedMethod,
    encode_response,
    run_in_unit,
    run_stream,
)
from shared.context import Context
from shared.errors import Code, Outcome, ServiceError, internal
from shared.limited_log import LimitedLog
from shared.metadata import read_metadata
from shared.outbox.inbox import Operation, OperationResult
from shared.outbox.unit_of_work import Execution, Perform
from shared.security_log import SecurityLog
from shared.trace import trace_id, valid_traceparent
from shared.wire import read_valid

__all__ = ["Dispatcher"]

_MAX_BUDGET = 60.0
"""Seconds; a longer budget of the caller is reduced to it."""
_MAX_REQUEST_BYTES = 4 * 2**20
"""A larger request is refused undecoded. The gateway accepts bodies of 2 MiB by default."""
_MAX_ID = 255
"""Characters of an operation id or correlation id: events and nested calls repeat them."""
_MAX_ADDRESS = 64
"""Characters of the client's address that are kept: more than an address has."""
_CLOCK_LOG_SECONDS = 60.0
"""Shortest time between two log lines about the clock."""
_FAILURE_LINES = 10
"""Lines about unexpected exceptions of one method in ten seconds."""


class Verifier(Protocol):
    """Verifies access tokens and sessions: `SessionVerifier` of `shared.runtime`."""

    def verify(self, token: str, *, ended: bool) -> Caller:
        """Return the caller or raise ServiceError. With `ended`, an ended session is accepted."""


class Dispatcher:
    """Runs handlers: decodes, verifies and validates requests, and encodes replies and errors.

    `handlers` are objects whose methods have `@MessagePattern` or `@EventPattern`. Raises
    ContractMismatchError unless they serve exactly the methods of `worker`. Methods with side
    effects, and consumers of events, are executed in units of work by `perform`. `incidents` are
    those of the bus.
    """

    def __init__(
        self,
        worker: str,
        handlers: Iterable[object],
        verifier: Verifier,
        perform: Perform,
        *,
        security_log: SecurityLog | None = None,
        incidents: Counter[str] | None = None,
    ) -> None:
        self._security_log = security_log or SecurityLog()
        incidents = Counter() if incidents is None else incidents
        self.statistics = Statistics(self._security_log.counts, incidents)
        self._declared = DeclaredReasons(incidents)
        worker_service = WorkerServiceHandlers(
            worker, self.statistics, lambda: self.routes, lambda: self.events
        )
        owners = [*handlers, worker_service]
        self._methods = served_methods(worker, owners, self.statistics)
        self._events = EventDispatcher(
            consumed_events(worker, owners, self.statistics), perform, self._security_log
        )
        self._verifier = verifier
        self._perform = perform
        self._running: set[str] = set()
        self._call_log = LimitedLog(_FAILURE_LINES)
        self._clock_log = LimitedLog(seconds=_CLOCK_LOG_SECONDS)

    @property
    def routes(self) -> list[str]:
        """Routes of the methods that are served."""
        return list(self._methods)

    @property
    def events(self) -> list[str]:
        """Types of the events that are consumed."""
        return list(self._events.consumed)

    def answer(
        self, route: str, body: bytes, service: str
    ) -> Coroutine[Any, Any, bytes] | AsyncGenerator[bytes, None]:
        """Return the encoded Reply to an encoded Request, or the stream of replies.

        `service` calls: the transport has verified its name.
        """
        served = self._methods.get(route)
        if served is None:
            return _not_served()
        if len(body) > _MAX_REQUEST_BYTES:
            self._security_log.refuse_message(route, reasons.REQUEST_TOO_LARGE)
            return _too_large()
        if served.method.streams:
            return self._replies(served, body, service)
        return self._reply(served, body, service)

    async def _reply(self, served: ServedMethod, body: bytes, service: str) -> bytes:
        traceparent, began, code, context = "", 0.0, 0, None
        try:
            request = read_request(body)
            traceparent = valid_traceparent(request.traceparent)
            began = served.metrics.begin(request.sent_unix_ms / 1000)
            context, message = self._verify_and_validate(served, request, traceparent, service)
            with context:
                if served.method.has_side_effects:
                    operation = served.operation(request.payload, context)
                    execute = partial(run_in_unit, served.handler, message, context)
                    payload, replayed = await self._perform_exclusively(operation, execute)
                else:
                    payload = encode_response(await served.handler(message, context))
                    replayed = False
            revision = context.caller_revision
            raised = revision if revision > request.caller_revision else 0
            reply = payload_reply(payload, replayed=replayed, caller_revision=raised)
            if replayed or (context.reply_headers is None and context.reply_trailers is None):
                return reply
            return with_metadata(reply, context.reply_headers, context.reply_trailers)
        except asyncio.CancelledError:
            code = Code.CANCELLED
            raise
        except Exception as error:  # noqa: BLE001  # a handler may raise anything; it is logged
            code, reply = self._failure(served, error, context, traceparent)
            return reply
        finally:
            if began:
                served.metrics.end(began, code)

    async def _replies(
        self, served: ServedMethod, body: bytes, service: str
    ) -> AsyncGenerator[bytes, None]:
        traceparent, began, code, context, sequence = "", 0.0, 0, None, 0
        try:
            request = read_request(body)
            traceparent = valid_traceparent(request.traceparent)
            began = served.metrics.begin(request.sent_unix_ms / 1000)
            context, message = self._verify_and_validate(served, request, traceparent, service)
            async with aclosing(run_stream(served.handler, message, context)) as responses:
                async for response in responses:
                    sequence += 1
                    reply = payload_reply(encode_response(response), sequence)
                    if sequence == 1 and context.reply_headers is not None:
                        reply = with_metadata(reply, context.reply_headers, None)
                    yield reply
            headers = None if sequence else context.reply_headers
            yield with_metadata(completed_reply(sequence + 1), headers, context.reply_trailers)
        except Exception as error:  # noqa: BLE001  # a handler may raise anything; it is logged
            code, reply = self._failure(served, error, context, traceparent)
            yield reply
        finally:
            if began:
                served.metrics.end(began, code)

    def _verify_and_validate(
        self, served: ServedMethod, request: Any, traceparent: str, service: str
    ) -> tuple[Context, betterproto.Message]:
        """Return the context and the message of a request.

        The token is verified again, because any client of the broker could claim any identity.
        """
        if served.callers and service not in served.callers:
            raise _not_a_caller()
        token = request.access_token
        ends_session = served.method.ends_session
        try:
            caller = self._verifier.verify(token, ended=ends_session) if token else None
        except ServiceError:
            self._log_skew(request)
            raise
        if caller is None and served.needs_user:
            raise token_missing()
        operation_id = request.operation_id or str(uuid7())
        correlation_id = request.correlation_id or operation_id
        if len(operation_id) > _MAX_ID or len(correlation_id) > _MAX_ID:
            raise _id_too_long()
        context = Context(
            name=served.name,
            caller=caller,
            calling_service=service,
            access_token=token,
            deadline=time.monotonic() + min(budget_of(request), _MAX_BUDGET),
            operation_id=operation_id,
            correlation_id=correlation_id,
            traceparent=traceparent,
            caller_revision=request.caller_revision,
            client_address=request.client_address[:_MAX_ADDRESS],
        )
        if request.metadata:
            context.received_metadata = read_metadata(request.metadata)
        if request.has_client_timeout:
            context.has_client_timeout = True
        return context, read_valid(served.method.request, request.payload)

    def _log_skew(self, request: Any) -> None:
        """Log that the clock of this worker differs from that of the sender of a refused token.

        The sender, which has accepted the token, can have waited for as long as the budget.
        """
        budget, ahead = budget_of(request), time.time() - request.sent_unix_ms / 1000
        if request.sent_unix_ms and not -LEEWAY_SECONDS <= ahead <= LEEWAY_SECONDS + budget:
            self._clock_log.write(
                logging.WARNING, "clock.skew", process="sender", seconds=round(-ahead, 1)
            )

    def _failure(
        self, served: ServedMethod, error: Exception, context: Context | None, traceparent: str
    ) -> tuple[int, bytes]:
        """Return the code and the encoded Reply of a failed call.

        If the handler has made a call with side effects, the outcome is UNKNOWN: a rollback does
        not undo that call.
        """
        trace = trace_id(traceparent)
        if not isinstance(error, ServiceError):
            self._call_log.write(
                logging.ERROR,
                "request.failed",
                key=served.name,
                method=served.name,
                trace_id=trace,
                exc_info=error,
            )
            error = internal()
        elif context is not None and context.has_changed:
            error.outcome = Outcome.try_value(Outcome.UNKNOWN)
        self._declared.check(served.method, error)
        if context is None and error.reason == reasons.MALFORMED_MESSAGE:
            self._security_log.refuse_message(served.name, error.reason)
        self._security_log.record_refusal(error, context, method=served.name, trace_id=trace)
        reply = error_reply(error, trace)
        if context is not None:
            reply = with_metadata(reply, context.reply_headers, context.reply_trailers)
        return error.code, reply

    def consume(self, body: bytes) -> Coroutine[Any, Any, Failure | None]:
        """Execute the consumer of an encoded Event; return its failure, None for success."""
        return self._events.consume(body)

    async def _perform_exclusively(
        self, operation: Operation, execute: Execution
    ) -> OperationResult:
        """Perform an operation, unless it runs in this process: then ABORTED, OPERATION_RUNNING.

        An execution in another process is serialised by the inbox.
        """
        if operation.key in self._running:
            raise ServiceError(
                reasons.OPERATION_RUNNING,
                "The operation is still running. Repeat the request with the same idempotency key.",
                retry_after=1,
                outcome=Outcome.UNKNOWN,
            )
        self._running.add(operation.key)
        try:
            return await self._perform(operation, execute)
        finally:
            self._running.discard(operation.key)


def _not_a_caller() -> ServiceError:
    text = "The contract does not list this service as a caller of the method."
    return ServiceError(reasons.SERVICE_NOT_ALLOWED, text)


def _id_too_long() -> ServiceError:
    text = f"An operation id or correlation id has at most {_MAX_ID} characters."
    return ServiceError(reasons.MALFORMED_MESSAGE, text)


async def _not_served() -> bytes:
    error = ServiceError(reasons.UNKNOWN_METHOD, "The worker does not serve this method.")
    return error_reply(error)


async def _too_large() -> bytes:
    error = ServiceError(reasons.REQUEST_TOO_LARGE, "The request is larger than 4 MiB.")
    return error_reply(error)
