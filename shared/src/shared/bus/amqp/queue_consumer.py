"""The base class of everything that consumes a queue."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from shared import tasks
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.declarations import Binding, Exchange, Queue
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.topology import owner
from shared.errors import ServiceError
from shared.outbox.outbox import EncodedEvent
from shared.security_log import SecurityLog

__all__ = ["QueueConsumer", "event_owner", "is_from_owner", "log_forged_event"]

_STOP_SECONDS: Final = 2.0
_FINISH_SECONDS: Final = 2.5
_MAX_TYPE: Final = 255
"""Characters of the type of an event: those of a routing key (4.2.5.3)."""


class QueueConsumer:
    """A consumer of one or more queues. It is started again on every broker session."""

    def __init__(self, queue_name: str, prefetch: int) -> None:
        self.queue_name = queue_name
        self.starting = asyncio.Lock()
        self._prefetch = prefetch
        self._connection: BrokerConnection | None = None
        self._running: dict[object, asyncio.Task[None]] = {}
        """The running handlers, by message or control request."""

    @property
    def active(self) -> bool:
        """Whether it consumes at this moment."""
        return self._connection is not None and not self._connection.lost.is_set()

    async def restore(self, connection: BrokerConnection) -> bool:
        """See Watched.restore."""
        return await connection.restore(*self.own())

    def own(self) -> Sequence[Exchange | Queue | Binding]:
        """Return the objects of this service that the consumer needs."""
        raise NotImplementedError

    async def _open_channel(
        self, connection: BrokerConnection, *, prefetch: int = 0
    ) -> MessageChannel:
        """Open a channel; once the consumer has started, its loss counts as a lost connection.

        A consumer that the broker refuses must not end the calls of the process.
        """

        def lost(*_reason: Any) -> None:
            if self._connection is connection:
                connection.mark_lost()

        self._loop = asyncio.get_running_loop()
        return await connection.channel(prefetch=prefetch, on_lost=lost)

    def _passing_to(self, channel: MessageChannel) -> "partial[None]":
        return partial(self._start_handling, channel)

    async def stop(self) -> None:
        """Stop consuming, finish the running handlers, and close the channel.

        Handlers that do not finish in time are cancelled; their events are delivered again. Raises
        BROKER_ERRORS.
        """
        connection = self._connection
        try:
            if connection is not None and self.active:
                async with asyncio.timeout(_STOP_SECONDS):  # a blocked broker does not reply
                    await self._stop_consuming(connection)
        finally:
            self._cancel_waiting()
            await self._finish_running()
        if connection is not None and self.active:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._channel.transport.wait_writable()
                await self._close(connection)

    async def _stop_consuming(self, connection: BrokerConnection) -> None:
        """End the consumers of the queues."""
        raise NotImplementedError

    async def _close(self, connection: BrokerConnection) -> None:
        self._connection = None
        await connection.close_channel(self._channel)

    async def _finish_running(self) -> None:
        if self._running:
            _, late = await asyncio.wait(self._running.values(), timeout=_FINISH_SECONDS)
            await tasks.end(*late)

    _channel: MessageChannel

    def _start_handling(self, channel: MessageChannel, message: Delivered) -> None:
        """Start to handle a message.

        `channel` delivered it. After a reconnection it is not the current one any more.
        """
        self._running[message] = self._loop.create_task(self._handle(channel, message))

    async def _handle(self, channel: MessageChannel, message: Delivered) -> None:
        """Handle and settle a message, and remove it from the running handlers."""
        raise NotImplementedError

    def _cancel_waiting(self) -> None:
        """Cancel the messages that wait for a slot."""


def is_from_owner(message: Delivered) -> bool:
    """Return whether the service that owns the event in a message has sent it to its exchange.

    RabbitMQ validates the user id of a message.
    """
    return message.user_id == event_owner(message) and not message.dead_lettered


def event_owner(message: Delivered) -> str:
    """Return the service that owns the event in a message."""
    try:
        type_ = EncodedEvent.read(message.body).type
    except ServiceError:  # the handler refuses it
        type_ = message.routing_key
    return owner(type_[:_MAX_TYPE])  # `owner` keeps the names in memory


def log_forged_event(log: SecurityLog, message: Delivered) -> None:
    """Log an event that another service than its owner has sent."""
    log.refuse_sender("event", message.routing_key, message.user_id)
