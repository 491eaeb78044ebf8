"""A lane carries the messages of one AMQP channel, which aio-pika opens and looks after.

`FrameLane` reads and writes the frames of messages itself; `PikaLane` leaves them to aiormq.
"""

import asyncio
import struct
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import structlog
from aiormq import spec
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import AMQPError, DeliveryError, PublishError
from pamqp import encode
from pamqp.header import ContentHeader

from shared.messagebus.amqp import frames
from shared.messagebus.amqp.frames import Confirmed, Delivered, Message, Returned
from shared.messagebus.amqp.transport import Transport

__all__ = ["FrameLane", "Lane", "PikaLane", "RefusedError"]

_log = structlog.get_logger()
T = TypeVar("T")
OnMessage = Callable[[Delivered], None]
OnReturned = Callable[[Returned], None]

_WAITING: Final = 256
"""Messages that wait for aiormq before whoever sends has to wait as well."""


class RefusedError(Exception):
    """The broker has refused a message that was published with a confirm."""


class Lane(Protocol):
    """Sends and receives on one channel. Sending does not wait, and keeps the order."""

    async def consume(
        self,
        queue: str,
        handler: OnMessage,
        *,
        no_ack: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Pass the messages of a queue to `handler`; return the tag of the consumer.

        A lane has one consumer. The handler is not waited for and must not raise.
        """

    def on_returned(self, handler: OnReturned) -> None:
        """Pass mandatory messages that no queue takes to `handler`."""

    def publish(
        self,
        exchange: str,
        routing_key: str,
        header: bytes,
        body: bytes,
        *,
        mandatory: bool = False,
    ) -> None:
        """Send a message; `header` is what `frames.properties` returns."""

    def before_sending(self, callback: Callable[[], None]) -> None:
        """Call back before what is sent in this moment leaves; to publish more."""

    def flush(self) -> None:
        """Let what is sent in this moment leave at once: no more will come."""

    async def publish_confirmed(
        self, exchange: str, routing_key: str, header: bytes, body: bytes
    ) -> None:
        """Send a message and return once the broker has it.

        Raises RefusedError if it does not want it, ConnectionError if it goes away meanwhile.
        """

    def ack(self, tag: int) -> None:
        """Tell the broker that a message is dealt with."""

    def reject(self, tag: int, *, requeue: bool) -> None:
        """Tell the broker that a message goes back to its queue, or to the dead letters."""

    @property
    def has_room(self) -> bool:
        """Whether the connection takes more at this moment."""

    async def room(self) -> None:
        """Return once it does."""

    def fail(self) -> None:
        """Tell whoever waits for a confirm that none will come."""


class FrameLane:
    """A lane on the frames of a Transport. A channel in confirm mode is for confirmed ones only."""

    def __init__(self, transport: Transport, channel: Channel) -> None:
        self._transport = transport
        self._channel = channel
        self._number = channel.number
        self._frame_max = transport.frame_max
        self._on_message: OnMessage = _ignore
        self._on_returned: OnReturned = _ignore
        self._published = 0
        self._acked: list[int] = []
        self._settled: set[int] = set()
        """Messages dealt with that came after one that is not."""
        self._frontier = 0
        """All up to this delivery tag are dealt with; tags count from 1 on each channel (1.1)."""
        self._confirms: dict[int, asyncio.Future[None]] = {}
        transport.take(self._number, self._receive)

    def _receive(self, message: Message) -> None:
        if type(message) is Delivered:
            self._on_message(message)
        elif type(message) is Returned:
            self._on_returned(message)
        elif type(message) is Confirmed:
            self._confirm(message)

    async def consume(
        self,
        queue: str,
        handler: OnMessage,
        *,
        no_ack: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """See Lane.consume."""
        self._on_message = handler
        return await _consume(self._channel, queue, _ignore, no_ack, arguments)

    def on_returned(self, handler: OnReturned) -> None:
        """See Lane.on_returned."""
        self._on_returned = handler

    def publish(
        self,
        exchange: str,
        routing_key: str,
        header: bytes,
        body: bytes,
        *,
        mandatory: bool = False,
    ) -> None:
        """See Lane.publish."""
        self._transport.send(
            frames.publish(
                self._number, exchange, routing_key, header, body, self._frame_max, mandatory
            )
        )

    def before_sending(self, callback: Callable[[], None]) -> None:
        """See Lane.before_sending."""
        self._transport.before_sending(callback)

    def flush(self) -> None:
        """See Lane.flush."""
        self._transport.flush()

    async def publish_confirmed(
        self, exchange: str, routing_key: str, header: bytes, body: bytes
    ) -> None:
        """See Lane.publish_confirmed."""
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
        """See Lane.ack."""
        if not self._acked:
            self._transport.send_last(self._acks)
        self._acked.append(tag)

    def _acks(self) -> bytes:
        """Return the frames for what is acknowledged since the last time: mostly a single one.

        All up to the first one that is not dealt with are acknowledged at once (60.80, multiple).
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
        if covered := [tag for tag in acked if tag <= end]:  # one that the broker still waits for
            out.append(frames.ack(self._number, max(covered), multiple=True))
        return b"".join(out)

    def reject(self, tag: int, *, requeue: bool) -> None:
        """See Lane.reject."""
        self._settled.add(tag)
        self._transport.send(frames.reject(self._number, tag, requeue=requeue))

    @property
    def has_room(self) -> bool:
        """See Lane.has_room."""
        return self._transport.has_room

    async def room(self) -> None:
        """See Lane.room."""
        await self._transport.room()

    def fail(self) -> None:
        """See Lane.fail."""
        self._transport.leave(self._number)
        for confirm in self._confirms.values():
            if not confirm.done():
                confirm.set_exception(ConnectionError("the broker is away"))


class PikaLane:
    """A lane on aiormq, for comparison and as a way back."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._on_returned: OnReturned = _ignore
        self._waiting: asyncio.Queue[Coroutine[Any, Any, object]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = {asyncio.create_task(self._send())}
        self._failed = False
        self._room = asyncio.Event()
        self._room.set()

    async def _send(self) -> None:
        """Hand what waits to aiormq, in order."""
        while True:
            sending = await self._waiting.get()
            if self._waiting.empty():
                self._room.set()
            try:
                await sending
            except (AMQPError, OSError, RuntimeError):  # the session finds out
                return
            except (TypeError, ValueError):  # pamqp can't say it; the others can be said
                _log.exception("bus.not_sent")

    async def consume(
        self,
        queue: str,
        handler: OnMessage,
        *,
        no_ack: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """See Lane.consume."""

        async def pass_on(message: DeliveredMessage) -> None:
            handler(_delivered(message))

        return await _consume(self._channel, queue, pass_on, no_ack, arguments)

    def on_returned(self, handler: OnReturned) -> None:
        """See Lane.on_returned."""
        self._on_returned = handler

    def publish(
        self,
        exchange: str,
        routing_key: str,
        header: bytes,
        body: bytes,
        *,
        mandatory: bool = False,
    ) -> None:
        """See Lane.publish."""
        properties = _properties(header)
        publish = partial(
            self._channel.basic_publish,
            body,
            exchange=exchange,
            routing_key=routing_key,
            properties=properties,
            mandatory=mandatory,
            wait=False,
        )
        if self._channel.publisher_confirms:  # each waits for its own
            returned = Returned(routing_key, properties.correlation_id or "", body)
            self._spawn(self._publish_mandatory(publish, returned))
        else:
            self._put(publish())

    async def _publish_mandatory(
        self, publish: Callable[[], Coroutine[Any, Any, object]], returned: Returned
    ) -> None:
        """Aiormq tells what was returned only where it waits for confirms."""
        try:
            await publish()
        except PublishError:
            self._on_returned(returned)
        except (AMQPError, OSError, RuntimeError):  # the session finds out
            return

    def before_sending(self, callback: Callable[[], None]) -> None:
        """See Lane.before_sending."""
        asyncio.get_running_loop().call_soon(callback)

    def flush(self) -> None:
        """See Lane.flush: aiormq sends each message by itself."""

    async def publish_confirmed(
        self, exchange: str, routing_key: str, header: bytes, body: bytes
    ) -> None:
        """See Lane.publish_confirmed."""
        publishing = self._channel.basic_publish(
            body, exchange=exchange, routing_key=routing_key, properties=_properties(header)
        )
        task = self._spawn(publishing)
        try:
            await asyncio.shield(task)  # cut off, it may hold the channel's lock
        except asyncio.CancelledError:
            if task.cancelled():  # by `fail`, not whoever waits here
                raise ConnectionError("the broker is away") from None
            raise
        except DeliveryError:
            raise RefusedError from None
        except (AMQPError, RuntimeError) as error:
            raise ConnectionError("the broker is away") from error

    def ack(self, tag: int) -> None:
        """See Lane.ack."""
        self._put(self._channel.basic_ack(tag, wait=False))

    def reject(self, tag: int, *, requeue: bool) -> None:
        """See Lane.reject."""
        self._put(self._channel.basic_reject(tag, requeue=requeue, wait=False))

    @property
    def has_room(self) -> bool:
        """See Lane.has_room."""
        return self._room.is_set()

    async def room(self) -> None:
        """See Lane.room."""
        await self._room.wait()

    def fail(self) -> None:
        """See Lane.fail."""
        self._failed = True
        for task in self._tasks:
            task.cancel()
        self._room.set()
        while not self._waiting.empty():
            self._waiting.get_nowait().close()

    def _put(self, sending: Coroutine[Any, Any, object]) -> None:
        if self._failed:
            sending.close()
            return
        self._waiting.put_nowait(sending)
        if self._waiting.qsize() > _WAITING:
            self._room.clear()

    def _spawn(self, sending: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.create_task(sending)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited may have left


def _ignore(_: object) -> None:
    """Do nothing."""


async def _consume(
    channel: Channel,
    queue: str,
    callback: Callable[[DeliveredMessage], Any],
    no_ack: bool,
    arguments: Mapping[str, Any] | None,
) -> str:
    answer = await channel.basic_consume(
        queue, callback, no_ack=no_ack, arguments=dict(arguments or {})
    )
    return str(answer.consumer_tag)


def _properties(header: bytes) -> spec.Basic.Properties:
    """What `frames.properties` made, as pamqp has it."""
    content = ContentHeader()
    content.unmarshal(struct.pack(">HHQ", 60, 0, 0) + header)
    return content.properties


def _delivered(message: DeliveredMessage) -> Delivered:
    delivery, properties = message.delivery, message.header.properties
    oversized = len(message.body) > frames.MAX_BODY
    return Delivered(
        message.delivery_tag or 0,
        bool(getattr(delivery, "redelivered", False)),
        message.routing_key or "",
        properties.correlation_id or "",
        properties.reply_to or "",
        encode.field_table(properties.headers) if properties.headers else b"",
        b"" if oversized else message.body,
        oversized,
    )
