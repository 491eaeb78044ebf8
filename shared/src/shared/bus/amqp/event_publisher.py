"""Publishes events with confirms, and restores the exchange of a service's events."""

import asyncio
from typing import Any, Final

import structlog
from pamqp.commands import Exchange as ExchangeMethods

from postbus import reasons
from postbus.bus.v1 import Outcome
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_errors import (
    BROKER_ERRORS,
    MissingError,
    RefusedError,
    UnroutedError,
)
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.message_properties import PROTOBUF
from shared.bus.amqp.topology import exchange, service_exchanges
from shared.bus.call_errors import broker_blocked, connection_lost, unavailable
from shared.errors import ServiceError
from shared.outbox.outbox import EncodedEvent

__all__ = ["EventPublisher"]

_log = structlog.get_logger()

_CONFIRM_TIMEOUT: Final = 5
_ABSENT_SECONDS: Final = 2.5
"""Shortest time for which a lost exchange of events stays away; consumers check every second."""
_HOLD_SECONDS: Final = 2.0
"""Time in which consumers bind their queues to a restored exchange, before events are sent."""


class EventPublisher:
    """Publishes the events of a service on a channel in confirm mode.

    The loss of the channel is no loss of the connection. `suspicious` is set once the exchange or a
    queue may be missing.
    """

    def __init__(
        self, connection: BrokerConnection, service: str, suspicious: asyncio.Event
    ) -> None:
        self._connection = connection
        self._service = service
        self._exchange = exchange("events", service)
        self._suspicious = suspicious
        self._missing_since: float | None = None
        self._held_until = 0.0
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        """Open the channel; raises BROKER_ERRORS."""
        channel: MessageChannel | None = None

        def lost(*_reason: Any) -> None:
            self._suspicious.set()
            if channel is not None:
                self._connection.forget_channel(channel)

        channel = self._channel = await self._connection.channel(confirms=True, on_lost=lost)

    async def publish(self, event: EncodedEvent) -> None:
        """Publish a stored event; see MessageBus.publish_encoded."""
        if self._missing_since is not None or self._loop.time() < self._held_until:
            raise _unrouted()
        await self.publish_confirmed(
            self._exchange, event.type, event.body, message_id=event.id, type_=event.type
        )

    async def publish_confirmed(
        self, exchange: str, routing_key: str, body: bytes, **properties: Any
    ) -> None:
        """Publish a message and return once a queue has stored it.

        `properties` are those of `message_properties.properties`. UNAVAILABLE otherwise:
        EVENT_UNROUTED, EVENT_REFUSED, BROKER_BLOCKED or CONNECTION_LOST.
        """
        connection, channel = self._connection, self._channel
        if connection.transport.blocked:
            raise broker_blocked()
        properties |= {"content_type": PROTOBUF, "user_id": self._service}
        try:
            async with asyncio.timeout(_CONFIRM_TIMEOUT):
                await channel.publish_confirmed(exchange, routing_key, properties, body)
        except RefusedError:
            text = "The message broker refused the event."
            raise unavailable(reasons.EVENT_REFUSED, text) from None
        except UnroutedError:
            self._suspicious.set()
            raise _unrouted() from None
        except BROKER_ERRORS:
            if channel.closed and not connection.lost.is_set():
                raise _unrouted(Outcome.UNKNOWN) from None
            if not connection.transport.blocked:  # a late confirm: the connection is dead
                connection.mark_lost()
            if connection.lost.is_set():
                raise connection_lost() from None
            raise broker_blocked(Outcome.UNKNOWN) from None

    async def restore(self) -> None:
        """Declare the exchange of the events if it is missing; raises BROKER_ERRORS.

        A consumer cannot see that its binding is gone, but that the exchange is. So the exchange
        stays away for longer than the time between two checks of each consumer, and events are
        published again once the consumers have had time to bind their queues.
        """
        now = self._loop.time()
        if await self._exists():
            if self._missing_since is not None:
                self._missing_since = None
                self._held_until = now + _HOLD_SECONDS
        elif self._missing_since is None:
            _log.error("events.exchange_missing", service=self._service)
            self._missing_since = now
        elif now >= self._missing_since + _ABSENT_SECONDS:
            await self._connection.declare(*service_exchanges(self._service))
        if self._channel.closed:
            await self.open()

    async def _exists(self) -> bool:
        try:
            await self._connection.request_all(
                [ExchangeMethods.Declare(exchange=self._exchange, passive=True)]
            )
        except MissingError:
            return False
        return True


def _unrouted(outcome: int = Outcome.NO_EFFECT) -> ServiceError:
    return unavailable(reasons.EVENT_UNROUTED, "No queue has taken the event.", outcome)
