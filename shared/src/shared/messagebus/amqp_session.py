"""One connection to RabbitMQ: calls go out on it and replies come in."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aiormq.exceptions import AMQPError, PublishError
from yarl import URL

from postbus.bus.v1 import Control, Event, Outcome, Request
from shared.errors import ServiceError
from shared.messagebus.bus import (
    CREDIT,
    deadline_exceeded,
    next_payload,
    payload_of,
    remaining,
    unavailable,
)
from shared.wire import encode

__all__ = ["BROKER_ERRORS", "CONTENT_TYPE", "EVENT_EXCHANGE", "RPC_EXCHANGE", "Session"]

BROKER_ERRORS: Final = (AMQPError, OSError, RuntimeError, TimeoutError)
"""What aio-pika raises while the broker is away (RuntimeError: a channel that is closed)."""

RPC_EXCHANGE: Final = "postbus.rpc"
EVENT_EXCHANGE: Final = "postbus.events"
CONTENT_TYPE: Final = "application/x-protobuf"

_HEARTBEAT: Final = 10
_CONNECT_TIMEOUT: Final = 5
_CONFIRM_TIMEOUT: Final = 5


class Session:
    """One connection: calls go out and replies come in on one channel, events on another.

    `lost` is set once the connection, a channel or a consumer has gone; the session is then of no
    more use.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        self.lost = asyncio.Event()
        self._connection = connection
        self._pending: dict[str, asyncio.Future[bytes]] = {}
        self._streams: dict[str, _Stream] = {}
        self._publishing: set[asyncio.Task[None]] = set()
        self._ids = itertools.count()
        connection.close_callbacks.add(self.fail)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, name: str) -> AsyncIterator["Session"]:
        """Connect and declare the exchanges; raises BROKER_ERRORS."""
        connection = await aio_pika.connect(
            URL(url).update_query(heartbeat=_HEARTBEAT),
            timeout=_CONNECT_TIMEOUT,
            client_properties={"connection_name": name},
        )
        session = cls(connection)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                await session._declare()
            yield session
        finally:
            session.fail()
            with suppress(*BROKER_ERRORS):
                await asyncio.wait_for(connection.close(), 1)

    async def _declare(self) -> None:
        # aiormq matches returned messages by confirms and message_id, so both have to be on.
        calls = await self.channel(on_return_raises=True)
        self._rpc = await calls.declare_exchange(RPC_EXCHANGE, "topic", durable=True)
        replies = await calls.declare_queue(exclusive=True, auto_delete=True)
        await replies.consume(self._on_reply, no_ack=True)
        self._reply_to = replies.name
        self._control = await self.channel(publisher_confirms=False)
        events = await self.channel()
        self._events = await events.declare_exchange(EVENT_EXCHANGE, "topic", durable=True)

    async def channel(
        self, *, publisher_confirms: bool = True, on_return_raises: bool = False
    ) -> AbstractChannel:
        """Open a channel; the session is lost if the broker closes it or cancels a consumer."""
        channel = await self._connection.channel(
            publisher_confirms=publisher_confirms, on_return_raises=on_return_raises
        )
        channel.close_callbacks.add(self.fail)
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(self.fail)
        return channel

    async def call(self, route: str, request: Request) -> bytes:
        """See MessageBus.call."""
        if remaining(request) <= 0:
            raise deadline_exceeded(Outcome.NO_EFFECT)
        correlation_id = str(next(self._ids))
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._pending[correlation_id] = reply
        message = self._message(request, correlation_id)
        try:
            async with asyncio.timeout(remaining(request)):
                await self._confirmed(self._rpc.publish(message, route))
                body = await reply
        except TimeoutError:
            raise deadline_exceeded() from None
        except PublishError:
            raise unavailable("NO_ROUTE", "No service answers this at the moment.") from None
        except BROKER_ERRORS:
            raise _connection_lost() from None
        finally:
            self._pending.pop(correlation_id, None)
        return payload_of(body)

    async def stream(self, route: str, request: Request) -> AsyncGenerator[bytes, None]:
        """See MessageBus.stream."""
        if remaining(request) <= 0:
            raise deadline_exceeded(Outcome.NO_EFFECT)
        correlation_id = str(next(self._ids))
        stream = _Stream(self, self._message(request, correlation_id))
        self._streams[correlation_id] = stream
        try:
            async with asyncio.timeout(remaining(request)):
                await self._confirmed(self._rpc.publish(stream.request, route))
            sequence = 0
            while True:
                sequence += 1
                async with asyncio.timeout(remaining(request)):
                    payload = next_payload(await stream.next(), sequence)
                if payload is None:
                    stream.ended = True
                    return
                yield payload
        except TimeoutError:
            raise deadline_exceeded() from None
        except PublishError:
            raise unavailable("NO_ROUTE", "No service answers this at the moment.") from None
        except BROKER_ERRORS:
            raise _connection_lost() from None
        except ServiceError:
            stream.ended = True
            raise
        finally:
            del self._streams[correlation_id]
            if not stream.ended:
                stream.control(cancel=True)

    def control(self, queue: str, control: Control) -> None:
        """Send a Control to the queue of a worker, if the connection is there."""
        message = aio_pika.Message(encode(control), content_type=CONTENT_TYPE)
        exchange = self._control.default_exchange
        publishing = exchange.publish(message, queue, mandatory=False)
        task = asyncio.create_task(self._within_time(publishing))
        self._publishing.add(task)
        task.add_done_callback(self._published)

    def _message(self, request: Request, correlation_id: str) -> aio_pika.Message:
        return aio_pika.Message(
            encode(request),
            content_type=CONTENT_TYPE,
            message_id=correlation_id,
            correlation_id=correlation_id,
            reply_to=self._reply_to,
            expiration=max(remaining(request), 0.001),
        )

    async def publish(self, event: Event) -> None:
        """See MessageBus.publish."""
        message = aio_pika.Message(
            encode(event),
            content_type=CONTENT_TYPE,
            message_id=event.id,
            type=event.type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        try:
            await self._confirmed(self._events.publish(message, event.type, mandatory=False))
        except BROKER_ERRORS:
            raise _connection_lost() from None

    async def _confirmed(self, publishing: Coroutine[Any, Any, object]) -> None:
        """Publish in a task of its own: one that is cut off may hold aiormq's channel for good.

        It has its own time, whatever the caller's deadline; past that the session is lost.
        """
        task = asyncio.create_task(self._within_time(publishing))
        self._publishing.add(task)
        task.add_done_callback(self._published)
        await asyncio.shield(task)

    async def _within_time(self, publishing: Coroutine[Any, Any, object]) -> None:
        try:
            async with asyncio.timeout(_CONFIRM_TIMEOUT):
                await publishing
        except TimeoutError:
            self.fail()
            raise ConnectionError("no confirm") from None

    def _published(self, task: asyncio.Task[None]) -> None:
        self._publishing.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may have left before

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        correlation_id = message.correlation_id or ""
        reply = self._pending.get(correlation_id)
        if reply is not None and not reply.done():
            reply.set_result(message.body)
        elif (stream := self._streams.get(correlation_id)) is not None:
            stream.put(message.body, message.reply_to or "")

    def fail(self, *_reason: object) -> None:
        """Give the session up; every call that waits on it fails."""
        self.lost.set()
        for reply in self._pending.values():
            if not reply.done():
                reply.set_exception(_connection_lost())
        for stream in self._streams.values():
            stream.put(None, "")


class _Stream:
    """The replies to one call that streams; gives credit as they are taken."""

    def __init__(self, session: Session, request: aio_pika.Message) -> None:
        self.request = request
        self.ended = False
        self._session = session
        self._replies: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._control_queue = ""
        self._taken = 0

    def put(self, reply: bytes | None, control_queue: str) -> None:
        """Take a reply; None if the connection is lost."""
        self._control_queue = control_queue
        self._replies.put_nowait(reply)

    async def next(self) -> bytes:
        """Wait for the next reply; UNAVAILABLE with CONNECTION_LOST if none will come."""
        reply = await self._replies.get()
        if reply is None:
            self._control_queue = ""
            raise _connection_lost()
        self._taken += 1
        if self._taken == CREDIT // 2:
            self.control(credit=self._taken)
            self._taken = 0
        return reply

    def control(self, *, credit: int = 0, cancel: bool = False) -> None:
        """Tell the worker, if it has said where."""
        if self._control_queue:
            self._session.control(
                self._control_queue,
                Control(
                    reply_to=self.request.reply_to or "",
                    correlation_id=self.request.correlation_id or "",
                    credit=credit,
                    cancel=cancel,
                ),
            )


def _connection_lost() -> ServiceError:
    return unavailable(
        "CONNECTION_LOST",
        "The connection to the message broker broke; the change may have happened.",
        Outcome.UNKNOWN,
    )
