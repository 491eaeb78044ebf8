"""The base class of everything that consumes a queue."""

import asyncio
from functools import partial
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractQueue

from shared.bus.amqp.broker_connection import BrokerConnection, MessageChannel
from shared.bus.amqp.frames import Delivered

__all__ = ["QueueConsumer"]

_STOP_SECONDS: Final = 2.0
_FINISH_SECONDS: Final = 2.5


class QueueConsumer:
    """A queue with its consumer. It is started again on every broker session."""

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

    async def _consume(self, connection: BrokerConnection) -> None:
        """Declare the queue and consume it; raises BROKER_ERRORS."""
        self._loop = asyncio.get_running_loop()
        self._channel = await connection.channel(prefetch=self._prefetch)
        self._queue = await self._declare(connection, self._channel.channel)
        handler = partial(self._start_handling, self._channel)
        self._tag = await self._channel.consume(self._queue.name, handler)
        self._connection = connection

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
        await self._queue.cancel(self._tag)

    async def _close(self, connection: BrokerConnection) -> None:
        await connection.close_channel(self._channel)

    async def _finish_running(self) -> None:
        if self._running:
            _, late = await asyncio.wait(self._running.values(), timeout=_FINISH_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _declare(
        self, connection: BrokerConnection, channel: AbstractChannel
    ) -> AbstractQueue:
        raise NotImplementedError

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
