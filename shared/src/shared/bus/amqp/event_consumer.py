"""Consumers of events: failed events are retried with delays, then kept as dead letters."""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from postbus import reasons
from shared.bus.amqp import topology
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.declarations import Binding, Queue, TopologyError
from shared.bus.amqp.event_replay import EventReplay
from shared.bus.amqp.event_senders import is_genuine, log_forged_event
from shared.bus.amqp.failed_events import FailedEvents
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.pause import HOLD_SECONDS, RETURNED, Pause
from shared.bus.amqp.queue_consumer import ConcurrentConsumer
from shared.bus.amqp.queue_migration import bind_present, declare_or_replace
from shared.bus.amqp.received_messages import Delivered
from shared.bus.message_bus import EventHandler, Failure
from shared.limited_log import LimitedLog

__all__ = ["EventConsumer"]

_PREFETCH: Final = 32
_FORGED: Final = Failure(
    reason=reasons.FORGED,
    message="The event was not sent by the service that owns it.",
    retry=False,
)


class EventConsumer(ConcurrentConsumer):
    """Passes the events of a queue to a handler. Without a name, the queue is an exclusive one."""

    def __init__(
        self,
        queue: str | None,
        types: Sequence[str],
        handler: EventHandler,
        *,
        on_gap: Callable[[], None] | None,
        delays: Sequence[float],
        incidents: Counter[str],
        hold_seconds: float = HOLD_SECONDS,
    ) -> None:
        super().__init__(queue or "")
        self._types = types
        self._handler = handler
        self._on_gap = on_gap
        self._delays = delays
        self._hold_seconds = hold_seconds
        self._log = LimitedLog(counts=incidents)
        self._failed = FailedEvents(self.queue_name, delays, self._log)
        self._replay = EventReplay(self.queue_name, types, self._handle_again, self._log)
        self._pause: Pause | None = None
        """The pause of the current channel; exclusive queues have none."""
        self._session: BrokerSession | None = None
        self._missing = False
        """Whether the exchange of an event was missing at the last check."""

    async def start(self, session: BrokerSession) -> None:
        """Consume in this session; call `on_gap` if it is not the first; raises BROKER_ERRORS."""
        again = self._session is not None
        connection = session.consuming
        self._service = session.service
        self._queue = self.queue_name or f"{self._service}.subscription.{secrets.token_hex(16)}"
        self._events = topology.event_bindings(self._queue, self._types)
        lost = bool(again and self.queue_name) and (
            await connection.consumer_count(self._queue) is None
        )
        await self._declare(connection, again=again)
        self._missing = bool(await bind_present(connection, self._events))
        self._session = session
        self._channel = await self._open_channel(connection, prefetch=_PREFETCH)
        self._pause = self._new_pause()
        await self._channel.consume([self._queue], partial(self._receive, self._channel))
        self._connection = connection
        if lost or self._replay.unread:
            self._replay.begin(session)
        if again and self._on_gap is not None:
            self._on_gap()

    def _new_pause(self) -> Pause | None:
        if not self.queue_name:
            return None
        return Pause(
            self._queue,
            self._channel,
            self._handler,
            prefetch=_PREFETCH,
            log=self._log,
            hold_seconds=self._hold_seconds,
        )

    async def _declare(self, connection: BrokerConnection, *, again: bool) -> None:
        """Declare the queues; replace queues of an older version, and finish a replacement.

        A consumer that has started once in this process knows that no replacement is unfinished.
        """
        if again or not self.queue_name:
            with suppress(TopologyError):
                await connection.declare(*self.own())
                return
        service, name = self._service, self._queue
        for queue in (
            topology.dead_letters(service, name),
            topology.consumer_queue(service, name),
        ):
            await declare_or_replace(connection, service, queue, self._events, self._log)
        await connection.declare(*self.own())

    def connection(self, session: BrokerSession) -> BrokerConnection | None:
        """See Watched.connection."""
        return session.consuming if self.active else None

    def own(self) -> Sequence[Queue]:
        """See QueueConsumer.own."""
        service, name = self._service, self._queue
        if not self.queue_name:
            return [Queue(name=name, arguments={}, exclusive=True, auto_delete=True)]
        delays = [topology.delay_queue(service, delay) for delay in self._delays]
        own = [topology.dead_letters(service, name), topology.consumer_queue(service, name)]
        return [*delays, *own]

    def restored(self) -> None:
        """Read the recent events again: some may have been in a queue that was missing.

        An event whose delay ends while its exchange is missing would be late by minutes. For an
        exclusive queue, `on_gap` is called instead.
        """
        if self._session is None:
            return
        if self.queue_name:
            self._replay.begin(self._session)
        elif self._on_gap is not None:
            self._on_gap()

    def foreign(self) -> Sequence[Binding]:
        """See Watched.foreign."""
        return self._events

    def checked(self, missing: bool) -> None:
        """Take note of a check; see Watched.checked.

        Once a missing exchange has come back, the events since the last good check are read again.
        """
        if self._missing and not missing:
            self.restored()
        self._missing = missing
        paused = self._pause is not None and self._pause.suspended
        if (
            not (missing or paused or self._replay.unread) and len(self._running) < _PREFETCH
        ):  # the queue has no backlog
            self._replay.good_at = time.monotonic()

    async def _handle_again(self, message: Delivered) -> None:
        """Handle an event of the stream; the inbox ignores it if it was handled before."""
        failure = await self._handler(message.body)
        if failure is not None:  # the queue, not this task, pauses for a dependency
            await self._publish_failed(message, RETURNED if failure.dependency_down else failure)

    async def _stop_consuming(self, connection: BrokerConnection) -> None:
        await self._replay.stop()
        tag = self._queue
        if self._pause is not None:
            await self._pause.stop()
            tag = self._pause.tag
        await self._channel.stop_consuming([tag])

    def _cancel_waiting(self) -> None:
        if self._pause is not None:
            self._pause.end()

    def _receive(self, channel: MessageChannel, message: Delivered) -> None:
        """Handle an event in a task. After a reconnection, `channel` is not the current one."""
        handling = self._handle(channel, message)
        self._running[message] = asyncio.get_running_loop().create_task(handling)

    async def _handle(self, channel: MessageChannel, message: Delivered) -> None:
        try:
            if message.oversized:  # the body was not read, but the broker can move the message
                channel.reject(message.tag, requeue=False)
                return
            failure = await self._result(channel, message)
            if (
                failure is None
                or not self.queue_name
                or (not channel.closed and await self._publish_failed(message, failure))
            ):
                channel.ack(message.tag)
        except Exception as error:  # noqa: BLE001  # every message must be settled, whatever the handler raises
            self._log.write(logging.ERROR, "event.rejected", queue=self.queue_name, exc_info=error)
            channel.reject(message.tag, requeue=False)
        finally:
            del self._running[message]

    async def _publish_failed(self, message: Delivered, failure: Failure) -> bool:
        assert self._session is not None  # noqa: S101  # it has delivered the message
        return await self._failed.publish(self._session, message, failure)

    async def _result(self, channel: MessageChannel, message: Delivered) -> Failure | None:
        """Handle an event, as often as the unavailability of a dependency requires."""
        if not is_genuine(message, self._service, queue=self.queue_name, types=self._types):
            if self._session is not None:
                log_forged_event(self._session.security_log, message)
            return _FORGED
        failure = await self._handler(message.body)
        if self._pause is None or channel is not self._channel:
            return failure
        if failure is not None and failure.dependency_down:
            failure = await self._pause.outlast(message.body, failure)
        if failure is None:
            self._pause.succeeded()
        return failure
