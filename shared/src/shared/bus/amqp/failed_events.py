"""Publishes failed events: to a delay queue for the next attempt, or to the dead letters."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from shared.bus.amqp import topology
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.pause import RETURNED
from shared.bus.amqp.received_messages import Delivered
from shared.bus.message_bus import Failure
from shared.errors import ServiceError
from shared.limited_log import LimitedLog
from shared.outbox.outbox import EncodedEvent

__all__ = ["FailedEvents", "names"]

_BROKER_DELAY: Final = 1.0
"""Seconds between two attempts to publish a failed event."""
_MAX_MESSAGE: Final = 1000
"""Characters of the error message in a dead letter."""
_MAX_NAME: Final = 255
"""Bytes of a message id or type (4.2.5.3)."""


class FailedEvents:
    """Publishes the failed events of a queue; `delays` are the seconds before its retries."""

    def __init__(self, queue: str, delays: Sequence[float], log: LimitedLog) -> None:
        self._queue = queue
        self._delays = delays
        self._log = log

    async def publish(self, session: BrokerSession, message: Delivered, failure: Failure) -> bool:
        """Publish an event to its delay queue, or to the dead letters after its last attempt.

        False if the session is lost. The original is acknowledged only after the confirm, so a
        crash can duplicate an event but not lose it.
        """
        exchange, headers = self._destination(message, failure, session.service)
        properties = {"headers": headers, **names(message)}
        while not session.lost.is_set():
            try:
                await session.events.publish_confirmed(
                    exchange, self._queue, message.body, **properties
                )
            except ServiceError as error:
                self._log.write(
                    logging.WARNING,
                    "event.publish_delayed",
                    queue=self._queue,
                    reason=error.reason,
                )
                await asyncio.sleep(_BROKER_DELAY)
            else:
                return True
        return False

    def _destination(
        self, message: Delivered, failure: Failure, service: str
    ) -> tuple[str, dict[str, Any]]:
        """Return the exchange for a failed event, and its headers.

        After a pause the event may be RETURNED to its own queue, as it was: a requeue would count
        against the delivery limit.
        """
        attempt = _attempt(message)
        if failure is RETURNED:
            return topology.exchange("retry", service), {topology.ATTEMPT: attempt}
        delay = failure.delay(attempt, self._delays)
        if delay is not None:
            headers = {topology.ATTEMPT: attempt + 1, topology.REASON: failure.reason}
            return topology.delay_queue(service, delay).name, headers
        self._log.write(
            logging.ERROR, "event.dead_lettered", queue=self._queue, reason=failure.reason
        )
        return topology.exchange("dead", service), {
            topology.ATTEMPT: attempt,
            topology.REASON: failure.reason,
            topology.ERROR_MESSAGE: failure.message[:_MAX_MESSAGE],
            topology.CONSUMER: self._queue,
            topology.DEAD_AT: datetime.now(UTC).isoformat(timespec="milliseconds"),
        }


def _attempt(message: Delivered) -> int:
    """Return the number of this attempt, from 1; an invalid header counts as none."""
    attempt = message.headers.get(topology.ATTEMPT)
    return attempt if isinstance(attempt, int) and 0 < attempt < 2**31 else 1


def names(message: Delivered) -> dict[str, Any]:
    """Return the properties `message_id` and `type_` of an event; none if it is malformed."""
    try:
        event = EncodedEvent.read(message.body)
    except ServiceError:
        return {}
    return {"message_id": _truncate(event.id), "type_": _truncate(event.type)}


def _truncate(text: str) -> str:
    return text.encode()[:_MAX_NAME].decode(errors="ignore")
