"""A connection to RabbitMQ and its channels.

aio-pika opens connections and channels and declares queues. Messages bypass it: a MessageChannel
reads and writes their frames on the same AMQP channel.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, cast

from aio_pika import Connection
from aio_pika.abc import AbstractChannel
from aiormq.channel import Channel
from aiormq.exceptions import AMQPError, ChannelNotFoundEntity, ChannelPreconditionFailed
from yarl import URL

from shared.bus.amqp import frames
from shared.bus.amqp.frames import Confirmed, Delivered, Message, Returned
from shared.bus.amqp.topology import Queue, TopologyError
from shared.bus.amqp.transport import Factory, Transport

__all__ = [
    "BROKER_ERRORS",
    "BrokerConnection",
    "MessageChannel",
    "RefusedError",
    "broker_errors",
]

BROKER_ERRORS: Final = (AMQPError, OSError, RuntimeError, TimeoutError)
"""Errors of aio-pika while the broker is unavailable (RuntimeError: the channel is closed)."""

_FRAME_OVERHEAD: Final = 8
_HEARTBEAT: Final = 10
_CONNECT_TIMEOUT: Final = 5
_CLOSE_TIMEOUT: Final = 1


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn cancellations by aiormq into ConnectionError, one of BROKER_ERRORS.

    After missed heartbeats (7.2.4) aiormq cancels its pending futures. The task that awaits them
    was not cancelled itself, and must not end.
    """
    task = asyncio.current_task()
    cancelling = task.cancelling() if task else 0
    try:
        yield
    except asyncio.CancelledError:
        if task is None or task.cancelling() > cancelling:
            raise
        raise ConnectionError("the broker is unavailable") from None


class RefusedError(Exception):
    """The broker refused a message that was published with a confirm (basic.nack)."""


class MessageChannel:
    """Sends and receives messages on an AMQP channel. Sending keeps the order and does not wait.

    `channel` is the same channel as an aio-pika object, for declarations. A channel in confirm mode
    must publish only by `publish_confirmed`, which counts the messages.
    """

    def __init__(self, channel: AbstractChannel, underlay: Channel, transport: Transport) -> None:
        self.channel = channel
        self.transport = transport
        self._underlay = underlay
        self._number = underlay.number
        self._frame_max = underlay.max_content_size + _FRAME_OVERHEAD
        self._on_delivered: Callable[[Delivered], None] = _ignore
        self._on_returned: Callable[[Returned], None] = _ignore
        self._published = 0
        self._confirms: dict[int, asyncio.Future[None]] = {}
        self._acked: list[int] = []
        self._settled: set[int] = set()
        """Settled delivery tags above the frontier."""
        self._frontier = 0
        """All delivery tags up to this one are settled; each channel counts from 1 (1.1)."""
        transport.register(self._number, self._receive, self._frame_max)

    def _receive(self, message: Message) -> None:
        if type(message) is Delivered:
            self._on_delivered(message)
        elif type(message) is Returned:
            self._on_returned(message)
        elif type(message) is Confirmed:
            self._confirm(message)

    async def consume(
        self,
        queue: str,
        handler: Callable[[Delivered], None],
        *,
        no_ack: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Pass the messages of a queue to `handler`; return the consumer tag.

        A channel has at most one consumer. The handler must not raise.
        """
        self._on_delivered = handler
        reply = await self._underlay.basic_consume(
            queue, _drop, no_ack=no_ack, arguments=dict(arguments or {})
        )
        return str(reply.consumer_tag)

    def on_returned(self, handler: Callable[[Returned], None]) -> None:
        """Pass unroutable mandatory messages to `handler`."""
        self._on_returned = handler

    def publish(
        self,
        exchange: str,
        routing_key: str,
        header: bytes,
        body: bytes,
        *,
        mandatory: bool = False,
        immediately: bool = False,
    ) -> None:
        """Send a message at the end of this tick, or immediately if no other message can join it.

        `header` is the result of `frames.properties`.
        """
        data = frames.publish(
            self._number, exchange, routing_key, header, body, self._frame_max, mandatory
        )
        if immediately:
            self.transport.send_now(data)
        else:
            self.transport.send(data)

    async def publish_confirmed(
        self, exchange: str, routing_key: str, header: bytes, body: bytes
    ) -> None:
        """Send a message and return once the broker has stored it.

        Raises RefusedError if the broker refuses it, ConnectionError if the connection is lost.
        """
        self._published += 1
        tag = self._published
        self._confirms[tag] = confirm = asyncio.get_running_loop().create_future()
        self.publish(exchange, routing_key, header, body)
        try:
            await confirm
        finally:
            self._confirms.pop(tag, None)

    def _confirm(self, message: Confirmed) -> None:
        tags = [message.tag]
        if message.multiple:
            tags = [tag for tag in self._confirms if tag <= message.tag or not message.tag]
        for tag in tags:
            confirm = self._confirms.pop(tag, None)
            if confirm is None or confirm.done():
                continue
            if message.refused:
                confirm.set_exception(RefusedError())
            else:
                confirm.set_result(None)

    def ack(self, tag: int) -> None:
        """Acknowledge a message, at the end of this tick."""
        if not self._acked:
            self.transport.send_last(self._ack_frames)
        self._acked.append(tag)

    def _ack_frames(self) -> bytes:
        """Return the frames for the messages acknowledged in this tick, mostly a single frame.

        One frame acknowledges all messages up to the first unsettled one (60.80, multiple).
        """
        acked, self._acked = self._acked, []
        end = self._frontier
        if acked == [end + 1] and not self._settled:
            self._frontier += 1
            return frames.ack(self._number, end + 1)
        self._settled.update(acked)
        while end + 1 in self._settled:
            end += 1
            self._settled.remove(end)
        self._frontier = end
        out = [frames.ack(self._number, tag) for tag in acked if tag > end]
        # The largest tag may be a rejected one, and a second settlement of it would be an error.
        if covered := [tag for tag in acked if tag <= end]:
            out.append(frames.ack(self._number, max(covered), multiple=True))
        return b"".join(out)

    def reject(self, tag: int, *, requeue: bool) -> None:
        """Return a message to its queue, or pass it to the dead letters."""
        self._settled.add(tag)
        self.transport.send(frames.reject(self._number, tag, requeue=requeue))

    def mark_lost(self) -> None:
        """Fail every pending confirm with ConnectionError."""
        self.transport.unregister(self._number)
        for confirm in self._confirms.values():
            if not confirm.done():
                confirm.set_exception(ConnectionError("the broker is unavailable"))


def _ignore(_: object) -> None:
    pass


async def _drop(_: object) -> None:
    """Drop a message that arrives after its channel was unregistered."""


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
        connection.close_callbacks.add(self.mark_lost)
        transport.on_lost = self.mark_lost

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, name: str) -> AsyncIterator["BrokerConnection"]:
        """Connect under the connection name `name`; raises BROKER_ERRORS."""
        connection = Connection(
            URL(url).update_query(heartbeat=_HEARTBEAT), client_properties={"connection_name": name}
        )
        connection.kwargs["transport_factory"] = factory = Factory()
        opened = None
        try:
            await connection.connect(timeout=_CONNECT_TIMEOUT)
            opened = cls(connection, factory.transport)
            yield opened
        finally:
            if opened is not None:
                opened.mark_lost()
            with suppress(*BROKER_ERRORS):
                await asyncio.wait_for(connection.close(), _CLOSE_TIMEOUT)

    async def channel(
        self,
        *,
        confirms: bool = False,
        prefetch: int = 0,
        on_lost: Callable[..., None] | None = None,
    ) -> MessageChannel:
        """Open a channel, in confirm mode with `confirms`.

        If the channel or its consumer is lost, `on_lost` is called; without it, the connection
        counts as lost.
        """
        lost = on_lost or self.mark_lost
        opened = await self._connection.channel(publisher_confirms=confirms)
        opened.close_callbacks.add(lost)
        underlay = cast("Channel", await opened.get_underlay_channel())
        underlay.on_consumer_cancel_callbacks.add(lost)
        if prefetch:
            await opened.set_qos(prefetch)
        channel = MessageChannel(opened, underlay, self.transport)
        self._channels.append(channel)
        return channel

    async def close_channel(self, channel: MessageChannel) -> None:
        """Close a channel; the connection stays open."""
        channel.channel.close_callbacks.discard(self.mark_lost)
        channel.mark_lost()
        self._channels.remove(channel)
        await channel.channel.close()

    @asynccontextmanager
    async def disposable_channel(self) -> AsyncIterator[AbstractChannel]:
        """Open a channel of aio-pika with confirms and close it at the end.

        Its loss does not affect the connection.
        """
        channel = await self._connection.channel()
        try:
            yield channel
        finally:
            if not channel.is_closed:
                await channel.close()

    async def declare(self, queue: Queue) -> None:
        """Declare a queue and its bindings.

        TopologyError if the queue exists with other arguments; the error names the difference.
        """
        try:
            async with self.disposable_channel() as channel:
                if queue.own_exchange:
                    await channel.declare_exchange(queue.exchange, "fanout", durable=True)
                declared = await channel.declare_queue(
                    queue.name, durable=True, arguments=dict(queue.arguments)
                )
                for key in queue.keys:
                    await declared.bind(queue.exchange, key)
        except ChannelPreconditionFailed as error:
            raise TopologyError.of_refusal(queue.name, str(error)) from None

    async def consumer_count(self, queue: str) -> int | None:
        """Return the number of consumers of a queue; None if the queue does not exist."""
        try:
            async with self.disposable_channel() as channel:
                declared = await channel.declare_queue(queue, passive=True)
        except ChannelNotFoundEntity:
            return None
        return declared.declaration_result.consumer_count or 0

    def mark_lost(self, *_reason: Any) -> None:
        """Set `lost`, call `on_lost`, and fail all pending confirms."""
        if self.lost.is_set():
            return
        self.lost.set()
        self.on_lost()
        for channel in self._channels:
            channel.mark_lost()
