"""A connection to RabbitMQ and its channels.

aio-pika opens connections and channels and declares queues. Messages bypass it: a MessageChannel
reads and writes their frames on the same AMQP channel.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, cast

from aio_pika import Connection
from aio_pika.abc import AbstractChannel
from aiormq.channel import Channel
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from pamqp import frame as pamqp_frame
from pamqp.base import Frame
from pamqp.commands import Basic
from pamqp.commands import Queue as QueueMethods
from yarl import URL

from shared.bus.amqp import frames
from shared.bus.amqp.frames import Closed, Confirmed, Delivered, Message, Returned
from shared.bus.amqp.topology import Binding, Exchange, Queue, TopologyError
from shared.bus.amqp.transport import Factory, Transport

__all__ = [
    "BROKER_ERRORS",
    "BrokerConnection",
    "MessageChannel",
    "MissingError",
    "RefusedError",
    "UnroutedError",
    "broker_errors",
]

BROKER_ERRORS: Final = (AMQPError, OSError, RuntimeError, TimeoutError)
"""Errors of aio-pika while the broker is unavailable (RuntimeError: the channel is closed)."""

_FRAME_OVERHEAD: Final = 8
_HEARTBEAT: Final = 10
_CONNECT_TIMEOUT: Final = 5
_CLOSE_TIMEOUT: Final = 1
_MAX_CHANNELS: Final = 2047
"""Channels of a connection that RabbitMQ accepts by default (channel_max)."""


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


class MissingError(RuntimeError):
    """An exchange or a queue does not exist, or this account has no right to use it."""


class RefusedError(Exception):
    """The broker refused a message that was published with a confirm (basic.nack)."""


class UnroutedError(Exception):
    """No queue has taken a message that was published with a confirm (basic.return)."""


class MessageChannel:
    """Sends and receives messages on an AMQP channel. Sending keeps the order and does not wait.

    `channel` is the same channel as an aio-pika object. A channel in confirm mode must publish only
    by `publish_confirmed`, which counts the messages. `exchange` is the one that it publishes to,
    if it is only one.
    """

    def __init__(
        self, channel: AbstractChannel, underlay: Channel, transport: Transport, exchange: str
    ) -> None:
        self.channel = channel
        self.transport = transport
        self.exchange = exchange
        self.prefix = exchange.rpartition(".")[2] + "."
        """Prefix of the names of the queues of the service that owns the exchange."""
        self.closed = False
        """Whether the broker has closed it: publications are dropped then."""
        self._underlay = underlay
        self._number = underlay.number
        self._frame_max = underlay.max_content_size + _FRAME_OVERHEAD
        self._on_delivered: Callable[[Delivered], None] = _ignore
        self._on_returned: Callable[[Returned], None] = _ignore
        self._published = 0
        self._confirms: dict[int, asyncio.Future[None]] = {}
        self._unconfirmed: dict[str, asyncio.Future[None]] = {}
        """The same futures, by correlation id."""
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
            if confirm := self._unconfirmed.get(message.correlation_id):
                if not confirm.done():
                    confirm.set_exception(UnroutedError())
            else:
                self._on_returned(message)
        elif type(message) is Confirmed:
            self._confirm(message)
        elif type(message) is Closed:
            # aiormq notices it only after it has sent its reply; a message sent meanwhile would
            # make the broker close the connection
            self.closed = True

    async def consume(
        self,
        queues: Iterable[str],
        handler: Callable[[Delivered], None],
        *,
        declared: Iterable[Exchange | Queue | Binding] = (),
        bound: Iterable[Binding] = (),
        no_ack: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Declare objects, and pass the messages of queues to `handler`, in one round trip.

        The bindings in `bound` are made after the start of the consumers. A channel has one
        handler, which must not raise. The name of a queue is the tag of its consumer.
        """
        self._on_delivered = handler
        tags = list(queues)
        self._underlay.consumers.update(dict.fromkeys(tags, _drop))
        consumes = [
            Basic.Consume(
                queue=tag, consumer_tag=tag, no_ack=no_ack, arguments=dict(arguments or {})
            )
            for tag in tags
        ]
        bindings = [frame for each in bound for frame in each.frames()]
        await self.request_all(
            [*(frame for each in declared for frame in each.frames()), *consumes, *bindings]
        )

    async def stop_consuming(self, queues: Iterable[str]) -> None:
        """End the consumers of queues, in one round trip."""
        await self.request_all([Basic.Cancel(consumer_tag=queue) for queue in queues])

    async def replace_consumer(self, old: str, new: str, queue: str, prefetch: int) -> None:
        """End the consumer with the tag `old`; start another one of a queue unless `prefetch` is 0.

        Its prefetch counts only its own deliveries. The handler is that of `consume`.
        """
        methods: list[Frame] = [Basic.Cancel(consumer_tag=old)]
        if prefetch:
            self._underlay.consumers[new] = _drop
            consume = Basic.Consume(queue=queue, consumer_tag=new)
            methods += [Basic.Qos(prefetch_count=prefetch), consume]
        await self.request_all(methods)
        self._underlay.consumers.pop(old, None)

    async def request_all(self, methods: Iterable[Frame]) -> list[Any]:
        """Send synchronous methods together; return the replies once all have arrived.

        aiormq would wait for each reply before it sends the next method. Raises TopologyError and
        MissingError as BrokerConnection.declare.
        """
        sent = list(methods)

        async def exchange() -> list[Any]:
            async with self._underlay.lock:
                if self.closed:
                    raise ConnectionError("the channel is closed")
                data = b"".join(pamqp_frame.marshal(each, self._number) for each in sent)
                self.transport.send_now(data)
                return [await self._underlay.rpc_frames.get() for _ in sent]

        async def run() -> list[Any]:
            replies: list[Any] = await self._underlay.create_task(exchange())
            return replies  # a task of the channel fails once the channel is closed

        # All replies are read even if the caller is cancelled: the channel would hold the rest, and
        # aiormq then reads no frame of any channel.
        running = asyncio.ensure_future(run())
        running.add_done_callback(_retrieve_exception)
        with _refusals():
            return await asyncio.shield(running)

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
        if self.closed:
            return
        data = frames.publish(
            self._number, exchange, routing_key, header, body, self._frame_max, mandatory
        )
        if immediately:
            self.transport.send_now(data)
        else:
            self.transport.send(data)

    async def publish_confirmed(
        self, exchange: str, routing_key: str, properties: Mapping[str, Any], body: bytes
    ) -> None:
        """Send a message and return once a queue has stored it.

        `properties` are those of `frames.properties`. Raises UnroutedError if there is no queue,
        RefusedError if the broker refuses it, ConnectionError if the channel is lost.
        """
        if self.closed:
            raise ConnectionError("the channel is closed")
        self._published += 1
        tag, name = self._published, str(self._published)
        header = frames.properties(**properties, persistent=True, correlation_id=name)
        confirm = asyncio.get_running_loop().create_future()
        self._confirms[tag] = self._unconfirmed[name] = confirm
        self.publish(exchange, routing_key, header, body, mandatory=True)
        try:
            await confirm
        finally:
            self._confirms.pop(tag, None)
            del self._unconfirmed[name]

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
        if self.closed:
            return
        if not self._acked:
            self.transport.send_last(self._ack_frames)
        self._acked.append(tag)

    def _ack_frames(self) -> bytes:
        """Return the frames for the messages acknowledged in this tick, mostly a single frame.

        One frame acknowledges all messages up to the first unsettled one (60.80, multiple).
        """
        acked, self._acked = self._acked, []
        if self.closed:
            return b""
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
        if self.closed:
            return
        self._settled.add(tag)
        self.transport.send(frames.reject(self._number, tag, requeue=requeue))

    def mark_lost(self) -> None:
        """Fail every pending confirm with ConnectionError."""
        self.closed = True
        self.transport.unregister(self._number)
        for confirm in self._confirms.values():
            if not confirm.done():
                confirm.set_exception(ConnectionError("the broker is unavailable"))


def _ignore(_: object) -> None:
    pass


async def _drop(_: object) -> None:
    """Drop a message that arrives after its channel was unregistered."""


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn refusals of declarations into TopologyError and MissingError."""
    try:
        yield
    except ChannelPreconditionFailed as error:
        raise TopologyError.of_refusal(str(error)) from None
    except (ChannelNotFoundEntity, ChannelAccessRefused) as error:
        raise MissingError(str(error)) from None


def _ignore_loss(*_: object) -> None:
    pass


def _retrieve_exception(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()  # else asyncio reports one that no caller waits for


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
        await self.request_all(frame for each in objects for frame in each.frames())

    async def restore(self, *objects: Exchange | Queue | Binding) -> bool:
        """Declare missing objects; return whether an exchange or a queue was missing.

        Bindings are always made: nothing shows whether one exists.
        """
        try:
            await self.request_all(f for each in objects for f in each.frames(passive=True))
        except MissingError:
            await self.declare(*objects)
            return True
        return False

    async def request_all(self, methods: Iterable[Frame]) -> list[Any]:
        """Send synchronous methods together on a channel of their own; return the replies.

        Raises as `declare`.
        """
        with _refusals():
            channel = await self.channel(on_lost=_ignore_loss)
            try:
                return await channel.request_all(methods)
            finally:
                self._close_later(channel)

    def _close_later(self, channel: MessageChannel) -> None:
        """Close a channel without waiting for the broker."""
        closed = channel.closed
        self.forget_channel(channel)
        if not closed:
            closing = asyncio.ensure_future(channel.channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            closing.add_done_callback(_retrieve_exception)

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
