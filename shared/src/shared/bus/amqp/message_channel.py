"""A lane carries the messages of one AMQP channel, which aio-pika opens and looks after.

`FrameLane` reads and writes the frames of messages itself; `PikaLane`, in its own module, leaves
them to aiormq.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from shared.bus.amqp import frames
from shared.bus.amqp.frames import Confirmed, Delivered, Message, Returned
from shared.bus.amqp.transport import Transport

__all__ = ["FrameLane", "Lane", "OnMessage", "OnReturned", "RefusedError", "consume", "ignore"]

OnMessage = Callable[[Delivered], None]
OnReturned = Callable[[Returned], None]


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
        self._on_message: OnMessage = ignore
        self._on_returned: OnReturned = ignore
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
        return await consume(self._channel, queue, ignore, no_ack, arguments)

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


def ignore(_: object) -> None:
    """Do nothing."""


async def consume(
    channel: Channel,
    queue: str,
    callback: Callable[[DeliveredMessage], Any],
    no_ack: bool,
    arguments: Mapping[str, Any] | None,
) -> str:
    """Consume a queue by aiormq; return the tag of the consumer."""
    answer = await channel.basic_consume(
        queue, callback, no_ack=no_ack, arguments=dict(arguments or {})
    )
    return str(answer.consumer_tag)
