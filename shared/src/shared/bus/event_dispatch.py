"""Dispatch events to their consumers."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from postbus import reasons
from shared.bus.consumed_event import ConsumedEvent
from shared.bus.message_bus import Failure
from shared.bus.served_method import run_in_unit
from shared.errors import Code, ServiceError, shown_name
from shared.limited_log import LimitedLog
from shared.outbox.unit_of_work import Perform
from shared.security_log import SecurityLog
from shared.wire import decode, message_class, parse_as

__all__ = ["EventDispatcher"]

_Event: Final[Any] = message_class("postbus.bus.v1.Event")
_TRANSIENT_CODES = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.DEADLINE_EXCEEDED)
"""Codes of errors that a retry may cure."""

_REFUSED_EVENT = (reasons.MALFORMED_MESSAGE, reasons.UNKNOWN_EVENT, reasons.FORGED)
"""Reasons of errors that only the sender of an event can cause."""


class EventDispatcher:
    """Runs the consumers of a worker, each event in a unit of work by `perform`.

    `consumed` are the consumers by the type of their event.
    """

    def __init__(
        self, consumed: Mapping[str, ConsumedEvent], perform: Perform, security_log: SecurityLog
    ) -> None:
        self.consumed = consumed
        self._perform = perform
        self._security_log = security_log
        self._log = LimitedLog()

    async def consume(self, body: bytes) -> Failure | None:
        """Execute the consumer of an encoded Event; return its failure, None for success."""
        name = ""
        try:
            event: Any = parse_as(_Event, body)  # upb converts only the fields that are read
            name = event.type
            await self._consume(event)
        except ServiceError as error:
            self._log_failed_event(logging.WARNING, name, reason=error.reason)
            if error.reason in _REFUSED_EVENT:
                self._security_log.refuse_message(name, error.reason)
            return Failure(
                reason=error.reason,
                message=_described(error),
                retry=error.code in _TRANSIENT_CODES,
                dependency_down=error.code is Code.UNAVAILABLE,
            )
        except Exception as error:  # noqa: BLE001  # a handler may raise anything
            self._log_failed_event(logging.ERROR, name, exc_info=error)
            return Failure(reason=reasons.INTERNAL, message=type(error).__name__, retry=True)
        return None

    def _log_failed_event(self, level: int, name: str, **values: Any) -> None:
        known = name if name in self.consumed else ""
        self._log.write(level, "event.failed", key=known, event_type=shown_name(name), **values)

    async def _consume(self, event: Any) -> None:
        consumed = self.consumed.get(event.type)
        if consumed is None:
            raise ServiceError(reasons.UNKNOWN_EVENT, "The worker does not consume this event.")
        context, operation = consumed.context(event), consumed.operation(event)
        message = decode(consumed.message, event.data)
        execute = partial(run_in_unit, consumed.handler, message, context)
        published = event.time.seconds + event.time.nanos / 1_000_000_000  # 0 if unknown
        began, code = consumed.metrics.begin(published), Code.INTERNAL
        try:
            with context:
                await self._perform(operation, execute)
            code = Code.UNSPECIFIED
        except ServiceError as error:
            code = error.code
            raise
        finally:
            consumed.metrics.end(began, code)


def _described(error: ServiceError) -> str:
    """Return the message of an error, with its first violation."""
    first = "".join(f" {each.field}: {each.message}." for each in error.violations[:1])
    return error.message + first
