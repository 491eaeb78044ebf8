"""Starts the consumers of a process, and ends them with their subscriptions."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog

from shared.bus.amqp.broker_errors import BROKER_ERRORS, broker_errors
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.queue_consumer import QueueConsumer
from shared.bus.amqp.stream_reader import StreamReader

__all__ = ["ConsumerStarts", "ConsumerSubscription", "StreamReaderSubscription"]

_log = structlog.get_logger()
_START_SECONDS: Final = 1.0
"""Time between two attempts to start consumers."""


class ConsumerStarts:
    """Starts `consumers` in a broker session. The list changes with the subscriptions."""

    def __init__(self, consumers: Sequence[QueueConsumer]) -> None:
        self._consumers = consumers

    async def start(self, session: BrokerSession, consumer: QueueConsumer) -> None:
        """Start a consumer unless it is cancelled or active. A failure is logged."""
        async with consumer.starting:
            if consumer not in self._consumers or consumer.active or session.lost.is_set():
                return
            try:
                with broker_errors():
                    await consumer.start(session)
            except BROKER_ERRORS as error:
                _log.warning("consumer.not_started", queue=consumer.queue_name, error=repr(error))

    async def start_all(self, session: BrokerSession, kind: type[QueueConsumer]) -> None:
        """Start the consumers of a class."""
        ours = [consumer for consumer in self._consumers if isinstance(consumer, kind)]
        await asyncio.gather(*(self.start(session, consumer) for consumer in ours))

    async def keep_started(self, session: BrokerSession, *kinds: type[QueueConsumer]) -> None:
        """Start the consumers of some classes in turn, and retry failed starts until cancelled."""
        while True:
            for kind in kinds:
                await self.start_all(session, kind)
            await asyncio.sleep(_START_SECONDS)


class ConsumerSubscription:
    """A Subscription that is one of `consumers`."""

    def __init__(self, consumers: list[QueueConsumer], consumer: QueueConsumer) -> None:
        self._consumers = consumers
        self._consumer = consumer

    async def cancel(self) -> None:
        """See Subscription.cancel."""
        if self._consumer in self._consumers:
            self._consumers.remove(self._consumer)
            async with self._consumer.starting:
                with suppress(*BROKER_ERRORS), broker_errors():
                    await self._consumer.stop()


class StreamReaderSubscription(ConsumerSubscription):
    """A StreamSubscription by a reader that is one of `consumers`."""

    def __init__(self, consumers: list[QueueConsumer], reader: StreamReader) -> None:
        super().__init__(consumers, reader)
        self._reader = reader

    @property
    def complete(self) -> bool:
        """See StreamSubscription.complete."""
        return self._reader.complete
