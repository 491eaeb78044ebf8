"""Read a stream: recent events first, then new ones."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final
from uuid import uuid4

import structlog
from aio_pika import Message

from shared import tasks
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_errors import BROKER_ERRORS, broker_errors
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.declarations import Binding, Queue
from shared.bus.amqp.event_senders import is_from_owner, log_forged_event
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.queue_consumer import QueueConsumer
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.stream_channel import Arrived, open_stream
from shared.bus.amqp.topology import event_bindings, event_stream, exchange
from shared.bus.message_bus import EventHandler
from shared.limited_log import LimitedLog

__all__ = ["StreamReader"]

_log = structlog.get_logger()
_START_SECONDS: Final = 1.0
"""Longest wait of a new session for the past events; its calls then start without them."""
_REPLAY_SECONDS: Final = 60.0
"""Longest time to read the past events; reading then starts again."""
_RETRY_SECONDS: Final = 2.0
"""Time between two attempts to read."""
_MAX_ERROR: Final = 500
"""Characters of an error in the log."""


class StreamReader(QueueConsumer):
    """Passes the events of a stream to a handler, one after the other; see MessageBus.read_stream.

    A consumer cannot detect the end of a stream, so the reader publishes a mark: once it reads its
    own mark, it has read all events that the broker had confirmed before. The stream has a
    channel of its own: while the stream is unavailable, the session serves all other calls.
    """

    def __init__(
        self,
        stream: str,
        types: Sequence[str],
        handler: EventHandler,
        *,
        seconds: float,
        replay_seconds: float = _REPLAY_SECONDS,
    ) -> None:
        super().__init__(stream)
        self.complete = False
        self._types = types
        self._handler = handler
        self._seconds = seconds
        self._replay_seconds = replay_seconds
        self._completed = asyncio.Event()
        self._log = LimitedLog()
        self._reading: asyncio.Task[None] | None = None

    async def start(self, session: BrokerSession) -> None:
        """Read the stream again in this session. Does not fail: failed reads are retried."""
        await self.stop()
        self._completed.clear()
        self._connection = session.consuming
        self._reading = asyncio.create_task(self._read(session))
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                await self._completed.wait()
        self.complete = self._completed.is_set()

    async def stop(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            await tasks.end(self._reading)

    def connection(self, session: BrokerSession) -> BrokerConnection | None:
        """See Watched.connection."""
        return session.consuming if self.complete else None

    def own(self) -> Sequence[Queue]:
        """See QueueConsumer.own."""
        return [self._stream]

    def foreign(self) -> Sequence[Binding]:
        """See Watched.foreign."""
        return event_bindings(self._stream.name, self._types)

    async def _read(self, session: BrokerSession) -> None:
        while True:
            error = "the channel was closed"
            try:
                with broker_errors():
                    await self._read_once(session)
            except BROKER_ERRORS as raised:
                error = repr(raised)[:_MAX_ERROR]
            if session.lost.is_set():  # the next session reads again before it serves a call
                return
            self.complete = False
            _log.warning("stream.not_read", stream=self.queue_name, error=error)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _read_once(self, session: BrokerSession) -> None:
        """Read until the channel is lost; raises BROKER_ERRORS."""
        connection = session.consuming
        async with asyncio.timeout(self._replay_seconds) as limit:
            stream = self._stream = event_stream(session.service, self.queue_name)
            await connection.declare(stream, *event_bindings(stream.name, self._types))
            async with open_stream(connection, stream.name, self._seconds) as (channel, arrived):
                mark = await self._publish_mark(session, stream.name)

                def complete() -> None:
                    limit.reschedule(None)
                    self.complete = True
                    self._completed.set()

                await self._handle_all(session, channel, arrived, mark, complete)

    async def _publish_mark(self, session: BrokerSession, stream: str) -> str:
        """Publish a mark to this stream only; return its correlation id."""
        mark = uuid4().hex
        message = Message(b"", correlation_id=mark, user_id=session.service)
        async with session.publishing.disposable_channel(confirms=True) as channel:
            retry = await channel.get_exchange(exchange("retry", session.service), ensure=False)
            await retry.publish(message, stream)
        return mark

    async def _handle_all(
        self,
        session: BrokerSession,
        channel: MessageChannel,
        arrived: Arrived,
        mark: str,
        complete: Callable[[], None],
    ) -> None:
        while (message := await arrived.get()) is not None:
            if message.correlation_id == mark:
                complete()
            # marks of other readers have another routing key
            elif message.routing_key in self._types and not message.oversized:
                if is_from_owner(message):
                    await self._handle_event(message)
                else:
                    log_forged_event(session.security_log, message)
            channel.ack(message.tag)

    async def _handle_event(self, message: Delivered) -> None:
        try:
            await self._handler(message.body)
        except Exception as error:  # noqa: BLE001  # an event that fails must not stop the next ones
            self._log.write(logging.ERROR, "event.rejected", stream=self.queue_name, exc_info=error)
