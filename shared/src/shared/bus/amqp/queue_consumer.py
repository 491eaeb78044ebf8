"""The base classes of everything that consumes a queue."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from shared import tasks
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.declarations import Binding, Exchange, Queue
from shared.bus.amqp.message_channel import MessageChannel

__all__ = ["ConcurrentConsumer", "QueueConsumer"]

_STOP_SECONDS: Final = 2.0
_FINISH_SECONDS: Final = 2.5


class QueueConsumer(ABC):
    """A consumer of one or more queues, which is started again on every broker session.

    It is Watched: objects that are missing at the broker are restored while it runs.
    """

    def __init__(self, queue_name: str) -> None:
        self.queue_name = queue_name
        self.starting = asyncio.Lock()
        self._connection: BrokerConnection | None = None

    @property
    def active(self) -> bool:
        """Whether it consumes at this moment."""
        return self._connection is not None and not self._connection.lost.is_set()

    @abstractmethod
    async def start(self, session: BrokerSession) -> None:
        """Consume in this session; raises BROKER_ERRORS."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop consuming; raises BROKER_ERRORS."""

    @abstractmethod
    def connection(self, session: BrokerSession) -> BrokerConnection | None:
        """See Watched.connection."""

    @abstractmethod
    def own(self) -> Sequence[Exchange | Queue | Binding]:
        """Return the objects of this service that the consumer needs."""

    async def restore(self, connection: BrokerConnection) -> bool:
        """See Watched.restore."""
        return await connection.restore(*self.own())

    def restored(self) -> None:  # noqa: B027  # only events can be read again
        """See Watched.restored."""

    def foreign(self) -> Sequence[Binding]:
        """See Watched.foreign."""
        return []

    def checked(self, missing: bool) -> None:  # noqa: B027  # only events can be read again
        """See Watched.checked."""


class ConcurrentConsumer(QueueConsumer):
    """A consumer that handles each message in a task, and finishes the tasks when it stops."""

    _channel: MessageChannel

    def __init__(self, queue_name: str) -> None:
        super().__init__(queue_name)
        self._running: dict[object, asyncio.Task[None]] = {}
        """The running handlers, by message or control request."""

    async def _open_channel(
        self, connection: BrokerConnection, *, prefetch: int = 0
    ) -> MessageChannel:
        """Open a channel; once the consumer has started, its loss counts as a lost connection.

        A consumer that the broker refuses must not end the calls of the process.
        """

        def lost(*_reason: Any) -> None:
            if self._connection is connection:
                connection.mark_lost()

        return await connection.channel(prefetch=prefetch, on_lost=lost)

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

    @abstractmethod
    async def _stop_consuming(self, connection: BrokerConnection) -> None:
        """End the consumers of the queues."""

    @abstractmethod
    def _cancel_waiting(self) -> None:
        """Cancel the messages that wait for a slot or for a dependency."""

    async def _finish_running(self) -> None:
        if self._running:
            _, late = await asyncio.wait(self._running.values(), timeout=_FINISH_SECONDS)
            await tasks.end(*late)

    async def _close(self, connection: BrokerConnection) -> None:
        self._connection = None
        await connection.close_channel(self._channel)
