"""An event with its consumer at one worker."""

import time
from typing import Any, Final

from postbus import reasons
from postbus.registry import EventType
from shared.bus.decorators import handles_late
from shared.bus.handler_metrics import HandlerMetrics
from shared.bus.served_method import Handler
from shared.context import Context
from shared.errors import ServiceError
from shared.outbox.inbox import Operation
from shared.trace import valid_traceparent

__all__ = ["ConsumedEvent"]

_BUDGET: Final = 30.0
"""Seconds for one execution of a consumer."""
_MAX_ID: Final = 255
"""Characters of an event's id or correlation id: the events that its consumer publishes repeat
them."""
_MAX_VERSION: Final = 2**63 - 1
"""Largest version: the integers of the databases have a sign."""


class ConsumedEvent:
    """An event that `worker` consumes by `handler`, with google's class for its envelope."""

    __slots__ = ("_late", "_name", "handler", "message", "metrics")

    def __init__(
        self, worker: str, event: EventType, handler: Handler, metrics: HandlerMetrics
    ) -> None:
        self.message = event.message
        self.handler = handler
        self.metrics = metrics
        self._name = f"{worker}.{event.name}"
        self._late = handles_late(handler)

    def context(self, event: Any) -> Context:
        """Return the context of one execution of the consumer."""
        return Context(
            name=self._name,
            deadline=time.monotonic() + _BUDGET,
            operation_id=event.id,
            correlation_id=event.correlation_id or event.id,
            traceparent=valid_traceparent(event.traceparent),
        )

    def operation(self, event: Any) -> Operation:
        """Return the operation of an event at this consumer, with the version of its subject.

        INVALID_ARGUMENT, MALFORMED_MESSAGE if a database cannot store the version, and if an id is
        longer than 255 characters.
        """
        if max(len(event.id), len(event.correlation_id)) > _MAX_ID:
            raise ServiceError(reasons.MALFORMED_MESSAGE, "An id exceeds 255 characters.")
        if event.version > _MAX_VERSION:
            raise ServiceError(reasons.MALFORMED_MESSAGE, "The version exceeds 63 bits.")
        return Operation(
            key=Operation.key_of("event", self._name, event.id),
            begin_immediately=True,
            subject=Operation.key_of(self._name, event.subject),
            version=event.version,
            handles_late=self._late,
        )
