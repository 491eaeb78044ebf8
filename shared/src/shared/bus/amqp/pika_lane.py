"""A lane on aiormq: the way back from our own frames, and what they are compared with."""

import asyncio
import struct
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import structlog
from aiormq import spec
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import AMQPError, DeliveryError, PublishError
from pamqp import encode
from pamqp.header import ContentHeader

from shared.bus.amqp import frames
from shared.bus.amqp.frames import Delivered, Returned
from shared.bus.amqp.message_channel import OnMessage, OnReturned, RefusedError, consume, ignore

__all__ = ["PikaLane"]

_log = structlog.get_logger()
T = TypeVar("T")

_WAITING: Final = 256
"""Messages that wait for aiormq before whoever sends has to wait as well."""


class PikaLane:
    """A lane on aiormq, for comparison and as a way back."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._on_returned: OnReturned = ignore
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

        return await consume(self._channel, queue, pass_on, no_ack, arguments)

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
