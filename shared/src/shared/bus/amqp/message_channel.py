"""An AMQP channel that sends and receives messages."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from aio_pika.abc import AbstractChannel
from aiormq.channel import Channel
from pamqp import frame as pamqp_frame
from pamqp.base import Frame
from pamqp.commands import Basic
from pamqp.commands import Queue as QueueMethods

from shared.bus.amqp import frame_writer
from shared.bus.amqp.acknowledgements import Acknowledgements
from shared.bus.amqp.broker_errors import declaration_errors
from shared.bus.amqp.confirms import Confirms
from shared.bus.amqp.declarations import Binding, Exchange, Queue
from shared.bus.amqp.message_properties import properties as encode_properties
from shared.bus.amqp.received_messages import Closed, Confirmed, Delivered, Message, Returned
from shared.bus.amqp.transport import Transport

__all__ = ["MessageChannel", "retrieve_exception"]

_FRAME_OVERHEAD: Final = 8


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
        self.service = exchange.rpartition(".")[2]
        """The service that owns the exchange."""
        self.prefix = self.service + "."
        """Prefix of the names of its queues."""
        self.closed = False
        """Whether the broker has closed it: publications are dropped then."""
        self._underlay = underlay
        self._number = underlay.number
        self._frame_max = underlay.max_content_size + _FRAME_OVERHEAD
        self._on_delivered: Callable[[Delivered], None] = _ignore
        self._on_returned: Callable[[Returned], None] = _ignore
        self._confirms = Confirms()
        self._acknowledgements = Acknowledgements(self._number)
        transport.register(self._number, self._receive, self._frame_max)

    def _receive(self, message: Message) -> None:
        if type(message) is Delivered:
            self._on_delivered(message)
        elif type(message) is Returned:
            if not self._confirms.fail_returned(message):
                self._on_returned(message)
        elif type(message) is Confirmed:
            self._confirms.settle(message)
        elif type(message) is Closed:
            # aiormq notices it only after it has sent its reply; a message sent meanwhile would
            # make the broker close the connection
            self.closed = True
            self._acknowledgements.acked.clear()

    async def consume(
        self,
        queues: Iterable[str],
        handler: Callable[[Delivered], None],
        *,
        declared: Iterable[Exchange | Queue | Binding] = (),
        bound: Iterable[Binding] = (),
        no_ack: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Declare objects, and pass the messages of queues to `handler`, in one round trip.

        The consumer of a declared queue starts next, before the queue can expire on a slow broker.
        The bindings in `bound` are made after the start of all consumers. A channel has one
        handler, which must not raise. The name of a queue is the tag of its consumer. Returns the
        names of the declared queues that had no consumer.
        """
        self._on_delivered = handler
        tags = list(queues)
        self._underlay.consumers.update(dict.fromkeys(tags, _drop))
        consumes = {
            tag: Basic.Consume(
                queue=tag, consumer_tag=tag, no_ack=no_ack, arguments=dict(arguments or {})
            )
            for tag in tags
        }
        methods: list[Frame] = []
        for each in declared:
            methods += each.methods()
            if isinstance(each, Queue) and each.name in consumes:
                methods.append(consumes.pop(each.name))
        bindings = [method for each in bound for method in each.methods()]
        replies = await self.request_all([*methods, *consumes.values(), *bindings])
        return [
            str(reply.queue)
            for reply in replies
            if isinstance(reply, QueueMethods.DeclareOk) and not reply.consumer_count
        ]

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
        running.add_done_callback(retrieve_exception)
        with declaration_errors():
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

        `header` is the result of `message_properties.properties`.
        """
        if self.closed:
            return
        data = frame_writer.publish(
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

        `properties` are those of `message_properties.properties`. Raises UnroutedError if there is
        no queue, RefusedError if the broker refuses it, ConnectionError if the channel is lost.
        """
        if self.closed:
            raise ConnectionError("the channel is closed")
        number, confirm = self._confirms.expect()
        try:
            header = encode_properties(**properties, persistent=True, correlation_id=str(number))
            self.publish(exchange, routing_key, header, body, mandatory=True)
            await confirm
        finally:
            self._confirms.forget(number)

    def ack(self, tag: int) -> None:
        """Acknowledge a message, at the end of this tick."""
        if self.closed:
            return
        acked = self._acknowledgements.acked
        if not acked:
            self.transport.send_last(self._acknowledgements.frames)
        acked.append(tag)

    def reject(self, tag: int, *, requeue: bool) -> None:
        """Return a message to its queue, or pass it to the dead letters."""
        if self.closed:
            return
        self._acknowledgements.reject(tag)
        self.transport.send(frame_writer.reject(self._number, tag, requeue=requeue))

    def mark_lost(self) -> None:
        """Fail every pending confirm with ConnectionError."""
        self.closed = True
        self._acknowledgements.acked.clear()
        self.transport.unregister(self._number)
        self._confirms.fail_all()


def _ignore(_: object) -> None:
    pass


async def _drop(_: object) -> None:
    """Drop a message that arrives after its channel was unregistered."""


def retrieve_exception(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()  # else asyncio reports one that no caller waits for
