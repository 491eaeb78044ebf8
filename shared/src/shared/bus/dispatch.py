"""Dispatch calls and events to their handlers."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from postbus import reasons
from shared.bus.call import read_request
from shared.bus.event_dispatch import EventDispatcher
from shared.bus.failed_calls import FailedCalls
from shared.bus.handler_matching import consumed_events, served_methods
from shared.bus.handler_metrics import Statistics, WorkerServiceHandlers
from shared.bus.message_bus import Failure
from shared.bus.reply import completed_reply, error_reply, payload_reply, with_metadata
from shared.bus.request_verification import RequestVerification, Verifier
from shared.bus.served_method import ServedMethod, encode_response, run_in_unit, run_stream
from shared.errors import Code, Outcome, ServiceError
from shared.outbox.inbox import Operation, OperationResult
from shared.outbox.unit_of_work import Execution, Perform
from shared.security_log import SecurityLog
from shared.trace import valid_traceparent

__all__ = ["Dispatcher"]

_MAX_REQUEST_BYTES: Final = 4 * 2**20
"""A larger request is refused undecoded. The gateway accepts bodies of 2 MiB by default."""


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
        worker_service = WorkerServiceHandlers(
            worker, self.statistics, lambda: self.routes, lambda: self.events
        )
        owners = [*handlers, worker_service]
        self._methods = served_methods(worker, owners, self.statistics)
        self._events = EventDispatcher(
            consumed_events(worker, owners, self.statistics), perform, self._security_log
        )
        self._requests = RequestVerification(verifier)
        self._failed = FailedCalls(self._security_log, incidents)
        self._perform = perform
        self._running: set[str] = set()

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
            context, message = self._requests.verify(served, request, traceparent, service)
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
            code, reply = self._failed.reply(served, error, context, traceparent)
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
            context, message = self._requests.verify(served, request, traceparent, service)
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
            code, reply = self._failed.reply(served, error, context, traceparent)
            yield reply
        finally:
            if began:
                served.metrics.end(began, code)

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


async def _not_served() -> bytes:
    error = ServiceError(reasons.UNKNOWN_METHOD, "The worker does not serve this method.")
    return error_reply(error)


async def _too_large() -> bytes:
    error = ServiceError(reasons.REQUEST_TOO_LARGE, "The request is larger than 4 MiB.")
    return error_reply(error)
