"""A connection to RabbitMQ.

aio-pika opens connections and channels and declares queues. Messages bypass it: a MessageChannel
reads and writes their frames on the same AMQP channel.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast

from aio_pika import Connection
from aio_pika.abc import AbstractChannel
from aiormq.channel import Channel
from pamqp.base import Frame
from pamqp.commands import Queue as QueueMethods
from yarl import URL

from shared.bus.amqp.broker_errors import BROKER_ERRORS, MissingError, declaration_errors
from shared.bus.amqp.declarations import Binding, Exchange, Queue
from shared.bus.amqp.foreign_properties import accept_any_properties
from shared.bus.amqp.message_channel import MessageChannel, retrieve_exception
from shared.bus.amqp.transport import Factory, Transport

__all__ = ["BrokerConnection"]

_HEARTBEAT: Final = 10
_CONNECT_TIMEOUT: Final = 5
_CLOSE_TIMEOUT: Final = 1
_MAX_CHANNELS: Final = 2047
"""Channels of a connection that RabbitMQ accepts by default (channel_max)."""


async def _connect(connection: Connection, factory: Factory) -> Transport:
    try:
        await connection.connect(timeout=_CONNECT_TIMEOUT)
    except TimeoutError:
        raise ConnectionError(f"no reply within {_CONNECT_TIMEOUT} seconds") from None
    except BROKER_ERRORS:
        if factory.transport is not None and factory.transport.close_reason:
            # for most reasons aiormq only reports an unexpected frame
            raise ConnectionError(factory.transport.close_reason) from None
        raise
    assert factory.transport is not None  # noqa: S101  # aiormq has connected by it
    return factory.transport


def _ignore_loss(*_: object) -> None:
    pass


class BrokerConnection:
    """A connection; `lost` is set once it, one of its channels or a consumer is lost.

    `on_lost` is then called.
    """

    def __init__(self, connection: Connection, transport: Transport) -> None:
        self.transport = transport
        self.lost = asyncio.Event()
        self.on_lost: Callable[[], None] = lambda: None
        self._connection = connection
        self._channels: list[MessageChannel] = []
        self._numbers = self._free_numbers()
        self._closing: set[asyncio.Future[None]] = set()
        connection.close_callbacks.add(self.mark_lost)
        transport.on_lost = self.mark_lost

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, name: str) -> AsyncIterator["BrokerConnection"]:
        """Connect under the connection name `name`; raises BROKER_ERRORS.

        If the broker refuses, ConnectionError with its reason, such as "403 ACCESS_REFUSED - …".
        """
        accept_any_properties()
        connection = Connection(
            URL(url).update_query(heartbeat=_HEARTBEAT), client_properties={"connection_name": name}
        )
        connection.kwargs["transport_factory"] = factory = Factory()
        opened = None
        try:
            opened = cls(connection, await _connect(connection, factory))
            yield opened
        finally:
            if opened is not None:
                opened.mark_lost()
                for closing in opened._closing:  # its own
                    closing.cancel()
            with suppress(*BROKER_ERRORS):
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await connection.close()

    async def channel(
        self,
        *,
        confirms: bool = False,
        prefetch: int = 0,
        exchange: str = "",
        on_lost: Callable[..., None] | None = None,
    ) -> MessageChannel:
        """Open a channel, in confirm mode with `confirms`.

        If the channel or its consumer is lost, `on_lost` is called; without it, the connection
        counts as lost.
        """
        lost = on_lost or self.mark_lost
        opened = await self._connection.channel(next(self._numbers), publisher_confirms=confirms)
        opened.close_callbacks.add(lost)
        underlay = cast("Channel", await opened.get_underlay_channel())
        underlay.on_consumer_cancel_callbacks.add(lost)
        if prefetch:
            await opened.set_qos(prefetch)
        channel = MessageChannel(opened, underlay, self.transport, exchange)
        self._channels.append(channel)
        return channel

    def _free_numbers(self) -> Iterator[int]:
        """Yield free channel numbers in turn, from 1 to 2047.

        aiormq would use the number of a channel again that the broker has closed before it has
        confirmed that; the broker then closes the connection (second channel.open).
        """
        for number in itertools.cycle(range(1, _MAX_CHANNELS + 1)):
            underlay = self._connection.transport
            if underlay is None or number not in underlay.connection.channels:
                yield number

    async def close_channel(self, channel: MessageChannel) -> None:
        """Close a channel; the connection stays open."""
        channel.channel.close_callbacks.discard(self.mark_lost)
        self.forget_channel(channel)
        await channel.channel.close()

    def forget_channel(self, channel: MessageChannel) -> None:
        """Fail the pending confirms of a channel that is or will be closed, and release it."""
        channel.mark_lost()
        if channel in self._channels:
            self._channels.remove(channel)

    @asynccontextmanager
    async def disposable_channel(self, *, confirms: bool = False) -> AsyncIterator[AbstractChannel]:
        """Open a channel of aio-pika and close it at the end.

        With `confirms`, publications are confirmed, and unroutable ones raise PublishError. Its
        loss does not affect the connection.
        """
        channel = await self._connection.channel(
            next(self._numbers), publisher_confirms=confirms, on_return_raises=confirms
        )
        try:
            yield channel
        finally:
            if not channel.is_closed:
                await channel.close()

    async def declare(self, *objects: Exchange | Queue | Binding) -> None:
        """Declare exchanges, queues and bindings together, in one round trip.

        TopologyError if one exists with other arguments; the error names the difference.
        MissingError if a binding's exchange is missing, or a right of this account.
        """
        await self.request_all(method for each in objects for method in each.methods())

    async def restore(self, *objects: Exchange | Queue | Binding) -> bool:
        """Declare missing objects; return whether an exchange or a queue was missing.

        Bindings are always made: nothing shows whether one exists.
        """
        try:
            await self.request_all(m for each in objects for m in each.methods(passive=True))
        except MissingError:
            await self.declare(*objects)
            return True
        return False

    async def request_all(self, methods: Iterable[Frame]) -> list[Any]:
        """Send synchronous methods together on a channel of their own; return the replies.

        Raises as `declare`.
        """
        with declaration_errors():
            channel = await self.channel(on_lost=_ignore_loss)
            try:
                return await channel.request_all(methods)
            finally:
                self.close_later(channel)

    def close_later(self, channel: MessageChannel) -> None:
        """Close a channel without waiting for the broker."""
        closed = channel.closed
        self.forget_channel(channel)
        if not closed:
            closing = asyncio.ensure_future(channel.channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            closing.add_done_callback(retrieve_exception)

    async def consumer_count(self, queue: str) -> int | None:
        """Return the number of consumers of a queue; None if the queue does not exist."""
        try:
            (state,) = await self.request_all([QueueMethods.Declare(queue=queue, passive=True)])
        except MissingError:
            return None
        return int(state.consumer_count)

    def mark_lost(self, *_reason: Any) -> None:
        """Set `lost`, call `on_lost`, and fail all pending confirms."""
        if self.lost.is_set():
            return
        self.lost.set()
        self.on_lost()
        for channel in self._channels:
            channel.mark_lost()
