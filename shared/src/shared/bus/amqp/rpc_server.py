"""The server of a worker: takes calls from a queue and publishes the replies."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractQueue
from aiormq import spec

from postbus.bus.v1 import Control, Outcome
from shared.bus.amqp import frames
from shared.bus.amqp.batches import MAX_BATCHED, Batch, Batches, batch_route, unpack
from shared.bus.amqp.broker_connection import BrokerConnection, MessageChannel
from shared.bus.amqp.broker_session import CONTENT_TYPE, BrokerSession
from shared.bus.amqp.frames import Delivered
from shared.bus.amqp.queue_consumer import QueueConsumer
from shared.bus.amqp.topology import CALL_EXCHANGE, CONTROL_EXCHANGE
from shared.bus.concurrency_limit import ConcurrencyLimit
from shared.bus.envelope import (
    budget_of,
    error_reply,
    read_request,
    spend_budget,
    unavailable,
    with_unknown_outcome,
)
from shared.bus.message_bus import CREDIT, RpcHandler
from shared.errors import Code, ServiceError, deadline_exceeded
from shared.limited_log import LimitedLog
from shared.wire import decode

__all__ = ["RpcServer"]


_ORPHAN_EXPIRES_MS: Final = 1000
"""Expiry of a queue without consumers. Auto-delete does not apply after a restart of the broker."""
_DRAIN_SECONDS: Final = 1.0
"""Longest time for which the last server of a queue waits until all calls have started."""
_MAX_STALL_SECONDS: Final = 30.0
"""Longest wait for the caller of a stream to grant credit."""
_MAX_CALLS: Final = 1024
"""Calls that the server holds, running or waiting for a slot, before it refuses more."""
_RPC_PREFETCH: Final = 2 * _MAX_CALLS
"""More than the server ever holds, so that handlers that call their own worker cannot deadlock."""
_LONGEST_MS: Final = 60_000
"""Longest expiration of a call that is returned to the queue."""
_MAX_CANCELS: Final = 1024
"""Cancellations of calls that have not arrived yet."""
_MAX_BYTES: Final = 64 * 2**20
"""Bytes of the calls that the server holds before it refuses more."""
_MAX_CONTROL: Final = 64 * 2**10
"""Largest control message in bytes; the requests in them are small."""
_MAX_ID: Final = 255
"""Bytes of a correlation id or a reply-to (4.2.5.3)."""

_Key = tuple[str, str]
"""A call, by its reply-to and correlation id."""


class RpcServer(QueueConsumer):
    """Serves the calls of a queue that is bound to each of its routes.

    The broker deletes the queue with its last consumer, so that calls are then unroutable and fail
    immediately.
    """

    def __init__(
        self, queue: str, routes: Sequence[str], handler: RpcHandler, concurrency: int
    ) -> None:
        super().__init__(queue, prefetch=_RPC_PREFETCH)
        self._routes = routes
        self._batch_routes = {batch_route(route): route for route in routes}
        self._handler = handler
        self._limit = ConcurrencyLimit(concurrency)
        self._calls: dict[_Key, Delivered] = {}
        self._credits: dict[_Key, _StreamCredit] = {}
        self._cancelled: OrderedDict[_Key, None] = OrderedDict()
        self._bytes = 0
        self._was_last_server = False
        self._log = LimitedLog()

    async def start(self, session: BrokerSession) -> None:
        """Serve in this session; raises BROKER_ERRORS.

        Calls and replies share a connection, so that an acknowledgement follows its reply.
        """
        await self._consume(session.publishing)
        await self._bind()

    async def _declare(
        self, connection: BrokerConnection, channel: AbstractChannel
    ) -> AbstractQueue:
        queue = await channel.declare_queue(
            self.queue_name,
            durable=True,
            auto_delete=True,
            arguments={"x-expires": _ORPHAN_EXPIRES_MS},
        )
        self._controls = await connection.channel()
        controls = await self._controls.channel.declare_queue(exclusive=True, auto_delete=True)
        for route in self._routes:
            await controls.bind(CONTROL_EXCHANGE, route)
        await self._controls.consume(controls.name, self._on_control, no_ack=True)
        self._sender = _ReplySender(controls.name)
        return queue

    async def _bind(self) -> None:
        """Bind the queue, after consuming: a draining server unbinds it if it sees no other."""
        for key in (*self._routes, *self._batch_routes):
            await self._queue.bind(CALL_EXCHANGE, key)

    def _start_handling(self, channel: MessageChannel, message: Delivered) -> None:
        if message.routing_key in self._batch_routes:
            self._start_batch(channel, message)
        elif message.oversized:
            self._refuse(channel, message, "REQUEST_TOO_LARGE", "The request is larger than 4 MiB.")
        elif len(self._running) >= _MAX_CALLS or self._bytes > _MAX_BYTES:
            self._refuse(channel, message, "OVERLOADED", "The worker is overloaded.")
        else:
            self._bytes += len(message.body)
            self._running[message] = self._loop.create_task(self._handle(channel, message))

    def _start_batch(self, channel: MessageChannel, message: Delivered) -> None:
        route = self._batch_routes[message.routing_key]
        try:
            calls = unpack(message.body)
        except ServiceError as error:  # without ids no caller can get a reply
            self._log.write(logging.WARNING, "batch.malformed", route=route, reason=error.reason)
            calls = []
        batch = _OpenBatch(message.tag, len(calls), redelivered=message.redelivered)
        if not calls:
            channel.ack(message.tag)
        for correlation_id, request in calls:
            call = _BatchedCall(batch, route, correlation_id, message.reply_to, request)
            self._start_handling(channel, call)

    def _refuse(self, channel: MessageChannel, message: Delivered, reason: str, text: str) -> None:
        error = ServiceError(
            Code.RESOURCE_EXHAUSTED, reason, text, retry_after=1, outcome=Outcome.NO_EFFECT
        )
        self._sender.send(channel, message, error_reply(error))
        self._acknowledge(channel, message)

    def _acknowledge(self, channel: MessageChannel, message: Delivered) -> None:
        """Acknowledge a finished call; a batch once all its calls have finished."""
        if type(message) is not _BatchedCall:
            channel.ack(message.tag)
            return
        message.batch.unfinished -= 1
        if not message.batch.unfinished:
            channel.ack(message.tag)

    async def _handle(self, channel: MessageChannel, message: Delivered) -> None:
        key = (message.reply_to, message.correlation_id)
        started = settled = False
        request, arrived = message.body, 0.0
        try:
            if key in self._cancelled:
                self._acknowledge(channel, message)
                return
            self._calls[key] = message
            started = self._limit.try_acquire()
            if not started:
                arrived = time.monotonic()
                await self._limit.acquire()
                started = True
                spent = spend_budget(request, time.monotonic() - arrived)
                if spent is None:
                    self._sender.send(channel, message, _expired())
                    self._acknowledge(channel, message)
                    settled = True
                    return
                request = spent
            handling = self._handler(message.routing_key, request)
            if isinstance(handling, AsyncGenerator):
                await self._stream(channel, message, key, handling)
            else:
                self._sender.send(channel, message, await handling)
            self._acknowledge(channel, message)
            settled = True
            if len(self._running) == 1:
                channel.transport.flush()
            if not channel.transport.writable:  # the slot stays taken while replies pile up
                await channel.transport.wait_writable()
        except asyncio.CancelledError:
            if not settled:
                waited = time.monotonic() - arrived
                self._end_cancelled(channel, message, key, waited, started=started)
        except Exception as error:  # noqa: BLE001  # every call must be settled
            self._log.write(
                logging.ERROR, "bus.call_failed", route=message.routing_key, exc_info=error
            )
            self._acknowledge(channel, message)
        finally:
            if self._calls.get(key) is message:
                del self._calls[key]
            del self._running[message]
            self._bytes -= len(message.body)
            if started:
                self._limit.release()

    def _end_cancelled(
        self,
        channel: MessageChannel,
        message: Delivered,
        key: _Key,
        waited: float,
        *,
        started: bool,
    ) -> None:
        """Settle a call that its caller or the end of this server has cancelled."""
        if key not in self._cancelled:  # this server stops: the caller needs a reply
            if started or self._was_last_server:
                outcome = Outcome.UNKNOWN if started else Outcome.NO_EFFECT
                stopped = unavailable("SERVER_STOPPED", "The worker has stopped.", outcome)
                self._sender.send(channel, message, error_reply(stopped))
            elif request := spend_budget(message.body, waited):
                _return_to_queue(channel, message, request)
            else:
                self._sender.send(channel, message, _expired())
        self._acknowledge(channel, message)

    async def _stream(
        self,
        channel: MessageChannel,
        message: Delivered,
        key: _Key,
        replies: AsyncGenerator[bytes, None],
    ) -> None:
        """Send replies as the caller grants credit, until the end or the caller stalls."""
        self._credits[key] = credit = _StreamCredit()
        try:
            async with aclosing(replies):
                async for reply in replies:
                    if not await credit.acquire():
                        return
                    self._sender.send(channel, message, reply)
        finally:
            if self._credits.get(key) is credit:
                del self._credits[key]

    def _on_control(self, message: Delivered) -> None:
        if len(message.body) > _MAX_CONTROL:
            return
        with suppress(ServiceError):  # any client of the broker can send malformed controls
            control = decode(Control, message.body)
            key = (control.reply_to, control.correlation_id)
            if any(len(each.encode()) > _MAX_ID for each in key):
                return
            if control.request:
                self._handle_broadcast(message.routing_key, control)
            elif control.cancel:
                self._cancel(key)
            elif credit := self._credits.get(key):
                credit.grant(control.credit)

    def _handle_broadcast(self, route: str, control: Control) -> None:
        """Handle a broadcast without waiting for a slot; only for methods of postbus.bus."""
        if not route.startswith("postbus.bus.") or len(self._running) >= _MAX_CALLS:
            return
        handling = self._handler(route, control.request)
        if isinstance(handling, AsyncGenerator):
            return
        channel, header = self._channel, self._sender.header(control.correlation_id)

        async def reply() -> None:
            try:
                channel.publish("", control.reply_to, header, await handling)
            finally:
                del self._running[handling]

        self._running[handling] = asyncio.create_task(reply())

    def _cancel(self, key: _Key) -> None:
        """Cancel a call.

        The last cancellations are kept, because a cancellation can arrive before its call.
        """
        self._cancelled[key] = None
        if len(self._cancelled) > _MAX_CANCELS:
            self._cancelled.popitem(last=False)
        if message := self._calls.get(key):
            self._running[message].cancel()

    async def _stop_consuming(self, connection: BrokerConnection) -> None:
        await self._drain()
        await super()._stop_consuming(connection)
        # Without the queue, no other server gets the calls that were not started.
        self._was_last_server = await connection.consumer_count(self.queue_name) is None

    async def _drain(self) -> None:
        """If this is the last server, unbind the queue and handle the waiting calls first.

        The broker deletes an auto-delete queue, with its calls, when its last consumer is gone.
        """
        if (await self._queue_state()).consumer_count != 1:
            return
        for key in (*self._routes, *self._batch_routes):
            await self._queue.unbind(CALL_EXCHANGE, key)
        if (await self._queue_state()).consumer_count != 1:  # another server has just started
            await self._bind()
            return
        # No timeout: aiormq closes the channel, which ends the session, if a declaration is
        # cancelled.
        end = self._loop.time() + _DRAIN_SECONDS
        while self._loop.time() < end:
            if not (await self._queue_state()).message_count and not self._limit.waiting:
                return
            await asyncio.sleep(0.02)

    def _cancel_waiting(self) -> None:
        self._limit.cancel_waiters()

    async def _close(self, connection: BrokerConnection) -> None:
        await super()._close(connection)
        await connection.close_channel(self._controls)

    async def _queue_state(self) -> spec.Queue.DeclareOk:
        queue = await self._channel.channel.declare_queue(self.queue_name, passive=True)
        return queue.declaration_result


class _OpenBatch:
    """A batch of which calls are unfinished."""

    __slots__ = ("redelivered", "tag", "unfinished")

    def __init__(self, tag: int, unfinished: int, *, redelivered: bool) -> None:
        self.redelivered = redelivered
        self.tag = tag
        self.unfinished = unfinished


class _BatchedCall(Delivered):
    """A call that arrived in a batch."""

    __slots__ = ("batch",)

    def __init__(
        self, batch: _OpenBatch, route: str, correlation_id: str, reply_to: str, request: bytes
    ) -> None:
        super().__init__(batch.tag, route, correlation_id, reply_to, b"", request)
        self.redelivered = batch.redelivered
        self.batch = batch


class _ReplySender:
    """Publishes replies. Small replies of one event-loop tick share a message per caller.

    Only callers that send batches get batches. `control_queue` is the reply-to of the replies:
    callers send credit there.
    """

    def __init__(self, control_queue: str) -> None:
        self.header = frames.Header(CONTENT_TYPE, control_queue)
        self._batches: Batches[tuple[MessageChannel, str]] = Batches(self._send_batch)

    def send(self, channel: MessageChannel, message: Delivered, reply: bytes) -> None:
        """Send the reply to a call, unless the call has no reply-to.

        A call that was delivered before may have had its effect there: an error does not claim
        NO_EFFECT.
        """
        reply_to = message.reply_to
        if not reply_to:
            return
        if message.redelivered:
            reply = with_unknown_outcome(reply)
        if type(message) is not _BatchedCall or len(reply) > MAX_BATCHED:
            channel.publish("", reply_to, self.header(message.correlation_id), reply)
        else:
            target = channel, reply_to
            self._batches.add(channel.transport, target, message.correlation_id, reply)

    def _send_batch(self, target: tuple[MessageChannel, str], batch: Batch) -> None:
        channel, reply_to = target
        channel.publish("", reply_to, self.header(""), batch.pack())


def _return_to_queue(channel: MessageChannel, call: Delivered, request: bytes) -> None:
    """Publish a call that was not started as a single call, for another server.

    A rejected message would keep the budget that it had when it arrived here.
    """
    milliseconds = _LONGEST_MS
    with suppress(ServiceError):  # the next server replies to a malformed request
        milliseconds = int(budget_of(read_request(request)) * 1000)
    header = frames.properties(
        CONTENT_TYPE,
        correlation_id=call.correlation_id,
        reply_to=call.reply_to,
        expiration_ms=min(max(milliseconds, 1), _LONGEST_MS),
    )
    channel.publish(CALL_EXCHANGE, call.routing_key, header, request)


def _expired() -> bytes:
    """Return the encoded reply to a call that was not started within its budget."""
    return error_reply(deadline_exceeded(Outcome.NO_EFFECT))


class _StreamCredit:
    """The credit of a stream: the number of replies that may still be sent."""

    def __init__(self) -> None:
        self._credit = CREDIT
        self._granted = asyncio.Event()

    def grant(self, credit: int) -> None:
        """Add credit, up to CREDIT in all."""
        self._credit = min(self._credit + credit, CREDIT)
        self._granted.set()

    async def acquire(self) -> bool:
        """Wait for credit and use one; False if the caller grants none for too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_MAX_STALL_SECONDS):
                while self._credit == 0:
                    self._granted.clear()
                    await self._granted.wait()
        if self._credit == 0:
            return False
        self._credit -= 1
        return True
