"""Queues that are consumed: calls to be answered and events to be handled."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aiormq import spec

from postbus.bus.v1 import Control
from shared.errors import ServiceError
from shared.messagebus.amqp_session import (
    BROKER_ERRORS,
    CONTENT_TYPE,
    EVENT_EXCHANGE,
    RPC_EXCHANGE,
    Session,
)
from shared.messagebus.bus import CREDIT, EventHandler, RpcHandler
from shared.wire import decode

__all__ = ["Endpoint", "EventConsumer", "RpcServer"]

_ORPHAN_EXPIRES_MS: Final = 1000
"""A broker that restarts keeps the queue of calls; without a worker it goes after this time."""
_DRAIN_SECONDS: Final = 1.0
_MAX_STALL_SECONDS: Final = 30.0
_FINISH_SECONDS: Final = 2.5
_EVENT_PREFETCH: Final = 32
_DELIVERY_LIMIT: Final = 10
"""Deliveries of an event that ends its consumer each time, before it is a dead letter."""


class Endpoint:
    """A queue and its consumer; begins anew on every session."""

    def __init__(self, queue_name: str, prefetch: int) -> None:
        self.queue_name = queue_name
        self.starting = asyncio.Lock()
        self._prefetch = prefetch
        self._session: Session | None = None
        self._running: set[asyncio.Task[object]] = set()

    @property
    def active(self) -> bool:
        """Whether it consumes at this moment."""
        return self._session is not None and not self._session.lost.is_set()

    async def start(self, session: Session) -> None:
        """Declare, bind and consume; raises BROKER_ERRORS."""
        self._channel = await session.channel(publisher_confirms=False)
        await self._channel.set_qos(self._prefetch)
        self._queue = await self._declare(self._channel)
        self._tag = await self._queue.consume(self._on_message)
        self._session = session

    async def stop(self) -> None:
        """Take no more messages, finish those that have begun, and leave; raises BROKER_ERRORS.

        What is not finished in time is cancelled; events are then delivered again.
        """
        try:
            if self.active:
                await self._drain()
                await self._queue.cancel(self._tag)
        finally:
            await self._finish_running()
        if self.active and self._session is not None:
            self._channel.close_callbacks.remove(self._session.fail)
            await self._channel.close()

    async def _finish_running(self) -> None:
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=_FINISH_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _on_message(self, message: AbstractIncomingMessage) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        with suppress(*BROKER_ERRORS):  # the broker delivers it again
            await self._handle(message)

    async def _declare(self, channel: AbstractChannel) -> AbstractQueue:
        raise NotImplementedError

    async def _handle(self, message: AbstractIncomingMessage) -> None:
        raise NotImplementedError

    async def _drain(self) -> None:
        """Do what has to be done while messages still come."""


class RpcServer(Endpoint):
    """Answers the calls of a queue that is bound to each of its routes.

    The queue goes with its last consumer, so that callers are told at once that nobody serves.
    """

    def __init__(
        self, queue: str, routes: Sequence[str], handler: RpcHandler, concurrency: int
    ) -> None:
        super().__init__(queue, prefetch=concurrency)
        self._routes = routes
        self._handler = handler
        self._control_queue = ""
        self._flows: dict[tuple[str, str], _Flow] = {}

    async def _declare(self, channel: AbstractChannel) -> AbstractQueue:
        queue = await channel.declare_queue(
            self.queue_name,
            durable=True,
            auto_delete=True,
            arguments={"x-expires": _ORPHAN_EXPIRES_MS},
        )
        for route in self._routes:
            await queue.bind(RPC_EXCHANGE, route)
        controls = await channel.declare_queue(exclusive=True, auto_delete=True)
        await controls.consume(self._on_control, no_ack=True)
        self._control_queue = controls.name
        return queue

    async def _handle(self, message: AbstractIncomingMessage) -> None:
        answer = self._handler(message.routing_key or "", message.body)
        if isinstance(answer, AsyncGenerator):
            await self._stream(message, answer)
        else:
            await self._reply(message, await answer)
        await message.ack()

    async def _reply(self, message: AbstractIncomingMessage, reply: bytes) -> None:
        if message.reply_to:
            await self._channel.default_exchange.publish(
                aio_pika.Message(
                    reply,
                    content_type=CONTENT_TYPE,
                    correlation_id=message.correlation_id,
                    reply_to=self._control_queue,
                ),
                message.reply_to,
                mandatory=False,
            )

    async def _stream(
        self, message: AbstractIncomingMessage, replies: AsyncGenerator[bytes, None]
    ) -> None:
        """Send what the caller has credit for, until the end or until it cancels."""
        key = (message.reply_to or "", message.correlation_id or "")
        self._flows[key] = flow = _Flow()
        try:
            async with aclosing(replies):
                async for reply in replies:
                    if not await flow.may_send():
                        return
                    await self._reply(message, reply)
        finally:
            del self._flows[key]

    async def _on_control(self, message: AbstractIncomingMessage) -> None:
        with suppress(ServiceError):  # whoever reaches the broker may send what it likes
            control = decode(Control, message.body)
            if flow := self._flows.get((control.reply_to, control.correlation_id)):
                flow.control(control)

    async def _drain(self) -> None:
        """Answer what waits, if this is the last server: the queue will go, and its calls too."""
        if (await self._queue_state()).consumer_count != 1:
            return
        for route in self._routes:
            await self._queue.unbind(RPC_EXCHANGE, route)
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while (await self._queue_state()).message_count:  # noqa: ASYNC110  # no event says
                    await asyncio.sleep(0.02)

    async def _queue_state(self) -> spec.Queue.DeclareOk:
        queue = await self._channel.declare_queue(self.queue_name, passive=True)
        return queue.declaration_result


class _Flow:
    """The credit of one stream."""

    def __init__(self) -> None:
        self._credit = CREDIT
        self._cancelled = False
        self._changed = asyncio.Event()

    def control(self, control: Control) -> None:
        """Take what the caller says."""
        self._credit = min(self._credit + control.credit, CREDIT)
        self._cancelled = self._cancelled or control.cancel
        self._changed.set()

    async def may_send(self) -> bool:
        """Wait for credit; False if the caller has cancelled, or takes nothing for too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_MAX_STALL_SECONDS):
                while self._credit == 0 and not self._cancelled:
                    self._changed.clear()
                    await self._changed.wait()
        if self._credit == 0 or self._cancelled:
            return False
        self._credit -= 1
        return True


class EventConsumer(Endpoint):
    """Hands the events of a queue to a handler; those that it refuses become dead letters."""

    def __init__(
        self,
        queue: str | None,
        types: Sequence[str],
        handler: EventHandler,
        on_gap: Callable[[], None] | None,
    ) -> None:
        super().__init__(queue or "", prefetch=_EVENT_PREFETCH)
        self._types = types
        self._handler = handler
        self._on_gap = on_gap

    async def start(self, session: Session) -> None:
        """See Endpoint.start; tells of the gap if this is not the first time."""
        again = self._session is not None
        await super().start(session)
        if again and self._on_gap is not None:
            self._on_gap()

    async def _declare(self, channel: AbstractChannel) -> AbstractQueue:
        queue = await self._declare_queue(channel)
        for event in self._types:
            await queue.bind(EVENT_EXCHANGE, event)
        return queue

    async def _declare_queue(self, channel: AbstractChannel) -> AbstractQueue:
        if not self.queue_name:
            return await channel.declare_queue(exclusive=True, auto_delete=True)
        dead_letters = f"{self.queue_name}.dead"
        await channel.declare_queue(dead_letters, durable=True)
        return await channel.declare_queue(
            self.queue_name,
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-delivery-limit": _DELIVERY_LIMIT,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": dead_letters,
            },
        )

    async def _handle(self, message: AbstractIncomingMessage) -> None:
        if await self._handler(message.body):
            await message.ack()
        else:
            await message.reject(requeue=False)
