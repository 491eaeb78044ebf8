"""Consumers of events: failed events are retried with delays, then kept as dead letters."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from shared.bus.amqp import frames, topology
from shared.bus.amqp.broker_connection import BrokerConnection, MessageChannel
from shared.bus.amqp.broker_session import CONTENT_TYPE, BrokerSession
from shared.bus.amqp.frames import Delivered
from shared.bus.amqp.pause import HOLD_SECONDS, RETURNED, Pause
from shared.bus.amqp.queue_consumer import QueueConsumer, event_owner
from shared.bus.amqp.queue_migration import bind_present, declare_or_replace
from shared.bus.message_bus import EventHandler, Failure
from shared.errors import ServiceError
from shared.limited_log import LimitedLog
from shared.outbox.outbox import EncodedEvent

__all__ = ["EventConsumer"]

_PREFETCH: Final = 32
_BROKER_DELAY: Final = 1.0
"""Seconds between two attempts to publish a failed event."""
_MAX_MESSAGE: Final = 1000
"""Characters of the error message in a dead letter."""
_MAX_NAME: Final = 255
"""Bytes of a message id or type (4.2.5.3)."""
_FORGED: Final = Failure(
    reason="FORGED", message="The event was not sent by the service that owns it.", retry=False
)


class EventConsumer(QueueConsumer):
    """Passes the events of a queue to a handler."""

    def __init__(
        self,
        queue: str | None,
        types: Sequence[str],
        handler: EventHandler,
        *,
        on_gap: Callable[[], None] | None,
        delays: Sequence[float],
        hold_seconds: float = HOLD_SECONDS,
    ) -> None:
        super().__init__(queue or "", prefetch=_PREFETCH)
        self._types = types
        self._handler = handler
        self._on_gap = on_gap
        self._delays = delays
        self._hold_seconds = hold_seconds
        self._log = LimitedLog()
        self._pause: Pause | None = None
        """The pause of the current channel; exclusive queues have none."""
        self._publisher: BrokerSession | None = None
        self._unbound: list[topology.Binding] = []
        """Bindings to exchanges that were missing."""

    async def start(self, session: BrokerSession) -> None:
        """Consume in this session; call `on_gap` if it is not the first; raises BROKER_ERRORS."""
        again = self._publisher is not None
        connection, service = session.consuming, session.service
        name = self.queue_name or f"{service}.subscription.{secrets.token_hex(16)}"
        events = topology.event_bindings(name, self._types)
        if self.queue_name:
            for queue in (
                topology.dead_letters(service, name),
                topology.consumer_queue(service, name),
            ):
                await declare_or_replace(connection, service, queue, events)
            delays = [topology.delay_queue(service, delay) for delay in self._delays]
            await connection.declare(*delays)
        else:
            own = topology.Queue(name=name, arguments={}, exclusive=True, auto_delete=True)
            await connection.declare(own)
        self._unbound = await bind_present(connection, events)
        self._queue, self._publisher = name, session
        self._channel = await self._open_channel(connection, prefetch=self._prefetch)
        self._cancel_waiting()
        if self.queue_name:
            self._pause = Pause(
                name,
                self._channel,
                self._handler,
                prefetch=self._prefetch,
                log=self._log,
                hold_seconds=self._hold_seconds,
            )
        await self._channel.consume([name], self._passing_to(self._channel))
        self._connection = connection
        if again and self._on_gap is not None:
            self._on_gap()

    async def bind_missing(self) -> None:
        """Bind the queue to the exchanges that were missing, if they exist now."""
        if self.active and self._unbound and self._connection is not None:
            self._unbound = await bind_present(self._connection, self._unbound)

    async def _stop_consuming(self, connection: BrokerConnection) -> None:
        tag = self._queue
        if self._pause is not None:
            await self._pause.stop()
            tag = self._pause.tag
        await self._channel.stop_consuming([tag])

    def _cancel_waiting(self) -> None:
        if self._pause is not None:
            self._pause.end()

    async def _handle(self, channel: MessageChannel, message: Delivered) -> None:
        try:
            if message.oversized:  # the body was not read, but the broker can move the message
                channel.reject(message.tag, requeue=False)
                return
            failure = await self._result(channel, message)
            if (
                failure is None
                or not self.queue_name
                or (not channel.closed and await self._retry_or_dead_letter(message, failure))
            ):
                channel.ack(message.tag)
        except Exception as error:  # noqa: BLE001  # every message must be settled, whatever the handler raises
            self._log.write(logging.ERROR, "event.rejected", queue=self.queue_name, exc_info=error)
            channel.reject(message.tag, requeue=False)
        finally:
            del self._running[message]

    async def _result(self, channel: MessageChannel, message: Delivered) -> Failure | None:
        """Handle an event, as often as the unavailability of a dependency requires."""
        if not self._is_genuine(message):
            self._log.write(logging.WARNING, "event.forged", queue=self.queue_name)
            return _FORGED
        failure = await self._handler(message.body)
        if self._pause is None or channel is not self._channel:
            return failure
        if failure is not None and failure.dependency_down:
            failure = await self._pause.outlast(message.body, failure)
        if failure is None:
            self._pause.succeeded()
        return failure

    def _is_genuine(self, message: Delivered) -> bool:
        """Return whether the owner of the event has sent it, or this service to itself (a retry).

        RabbitMQ validates the user id. Messages of delay queues from before the services had
        accounts have none; only their exchange could lead to this queue.
        """
        sender = message.user_id
        if self._publisher is not None and sender == self._publisher.service:
            return True
        if sender:
            return sender == event_owner(message)
        old = str(message.headers.get("x-first-death-queue", ""))
        return old.startswith(topology.OLD_DELAYS) and _type(message) in self._types

    async def _retry_or_dead_letter(self, message: Delivered, failure: Failure) -> bool:
        """Publish the event to its delay queue, or to the dead letters after its last attempt.

        After a pause it may be RETURNED: it is published to its own queue, as it was. A requeue
        would count against the delivery limit.
        False if the session is lost. The original is acknowledged only after the confirm, so a
        crash can duplicate an event but not lose it.
        """
        publisher = self._publisher
        assert publisher is not None  # noqa: S101  # it has delivered the message
        service = publisher.service
        attempt = _attempt(message)
        delay = failure.delay(attempt, self._delays)
        headers = {
            topology.ATTEMPT: attempt + (delay is not None),
            topology.REASON: failure.reason,
        }
        if failure is RETURNED:
            headers = {topology.ATTEMPT: attempt}
            target = (topology.exchange("retry", service), self.queue_name)
        elif delay is None:
            headers[topology.ERROR_MESSAGE] = failure.message[:_MAX_MESSAGE]
            headers[topology.CONSUMER] = self.queue_name
            headers[topology.DEAD_AT] = datetime.now(UTC).isoformat(timespec="milliseconds")
            target = (topology.exchange("dead", service), self.queue_name)
            self._log.write(
                logging.ERROR, "event.dead_lettered", queue=self.queue_name, reason=failure.reason
            )
        else:
            target = (topology.delay_queue(service, delay).name, self.queue_name)
        header = frames.properties(
            CONTENT_TYPE, persistent=True, headers=headers, user_id=service, **_names(message)
        )
        while not publisher.lost.is_set():
            try:
                await publisher.publish_confirmed(*target, header, message.body)
            except ServiceError as error:
                self._log.write(
                    logging.WARNING,
                    "event.publish_delayed",
                    queue=self.queue_name,
                    reason=error.reason,
                )
                await asyncio.sleep(_BROKER_DELAY)
            else:
                return True
        return False


def _attempt(message: Delivered) -> int:
    """Return the number of this attempt, from 1; an invalid header counts as none."""
    attempt = message.headers.get(topology.ATTEMPT)
    return attempt if isinstance(attempt, int) and 0 < attempt < 2**31 else 1


def _names(message: Delivered) -> dict[str, Any]:
    try:
        event = EncodedEvent.read(message.body)
    except ServiceError:
        return {}
    return {"message_id": _truncate(event.id), "type_": _truncate(event.type)}


def _type(message: Delivered) -> str:
    return str(_names(message).get("type_", ""))


def _truncate(text: str) -> str:
    return text.encode()[:_MAX_NAME].decode(errors="ignore")
