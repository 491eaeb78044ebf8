"""The server of a worker: takes calls from its queues and publishes the replies."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from postbus import reasons
from postbus.bus.v1 import Control, Outcome
from postbus_runtime.reasons import Reason
from shared.bus.amqp.batches import batch_route, unpack
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_errors import BROKER_ERRORS, MissingError
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.control_receiver import CallKey, ControlReceiver, control_queue
from shared.bus.amqp.declarations import Binding, Queue, TopologyError
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.method_queues import MethodQueues
from shared.bus.amqp.probe_answers import ProbeAnswers
from shared.bus.amqp.queue_consumer import QueueConsumer
from shared.bus.amqp.received_batch import BatchedCall, ReceivedBatch, acknowledge
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.reply_sender import ReplyChannels, ReplySender
from shared.bus.concurrency_limit import ConcurrencyLimit
from shared.bus.envelope import error_reply, spend_budget, unavailable
from shared.bus.message_bus import RpcHandler
from shared.errors import ServiceError, deadline_exceeded
from shared.limited_log import LimitedLog

__all__ = ["RpcServer"]

_MAX_CALLS: Final = 1024
"""Calls that the server holds, running or waiting for a slot, before it refuses more."""
_RPC_PREFETCH: Final = 2 * _MAX_CALLS
"""More than the server ever holds, so that handlers that call their own worker cannot deadlock."""
_MAX_BYTES: Final = 64 * 2**20
"""Bytes of the calls that the server holds before it refuses more."""


class RpcServer(QueueConsumer):
    """Serves calls. Each route has a queue of its own, named after `queue` and the route.

    The broker deletes a queue with its last consumer, so that calls of a route that no process
    serves are unroutable and fail immediately, also while processes of an older contract, without
    this route, serve other ones.
    """

    def __init__(
        self, queue: str, routes: Sequence[str], handler: RpcHandler, concurrency: int
    ) -> None:
        super().__init__(queue, prefetch=_RPC_PREFETCH)
        self._routes = routes
        self._batch_routes = {batch_route(route): route for route in routes}
        self._handler = handler
        self._limit = ConcurrencyLimit(concurrency)
        self._calls: dict[CallKey, Delivered] = {}
        self._bytes = 0
        self._refusing: dict[object, asyncio.Task[None]] = {}
        self._deleted: set[str] = set()
        """Routes whose queue was deleted when this server stopped."""
        self._stopping = False
        self._transient = True
        """Whether to declare transient queues: those of an older version are durable."""
        self._log = LimitedLog()

    async def start(self, session: BrokerSession) -> None:
        """Serve in this session; raises BROKER_ERRORS.

        Calls and replies share a connection, so that an acknowledgement follows its reply.
        """
        connection, service = session.publishing, session.service
        self._service, self._security_log = service, session.security_log
        self._queues = MethodQueues(
            service, self.queue_name, self._routes, transient=self._transient
        )
        self._replies = ReplyChannels(
            session.publishers, service, self._log, security_log=session.security_log
        )
        self._control_channel = await self._open_channel(connection)
        self._channel = await self._open_channel(connection, prefetch=_RPC_PREFETCH)
        name = f"{service}.control.{secrets.token_hex(16)}"
        self._sender = ReplySender(name, service)
        probes = ProbeAnswers(self._queues.created, self._calls, self._replies, self._sender.header)
        self._controls = ControlReceiver(
            self._replies,
            self._cancel,
            self._handle_broadcast,
            probes.answer,
            security_log=session.security_log,
        )
        own = self._control_queue = control_queue(name, service, self._routes)
        await self._control_channel.consume(
            [name], self._controls.receive, declared=[own], no_ack=True
        )
        try:
            await self._queues.consume(self._channel, self._passing_to(self._channel))
        except BROKER_ERRORS as error:
            if isinstance(error, MissingError):
                await self._queues.delete_unused(connection)
            elif isinstance(error, TopologyError):  # of another version: the next start joins them
                self._transient = not self._transient
            for channel in (self._control_channel, self._channel):
                connection.close_later(channel)
            raise
        self._connection = connection

    def connection(self, session: BrokerSession) -> BrokerConnection | None:
        """See Watched.connection."""
        return session.publishing if self.active and not self._stopping else None

    async def restore(self, connection: BrokerConnection) -> bool:
        """See Watched.restore. If a queue of calls is missing, the session ends and starts again.

        As a node of a cluster goes down, RabbitMQ can delete a transient queue that has just been
        declared at another node, without a message to its consumer (its issue 6271). The consumer
        would not be that of a new queue, and the end of the old queue would delete the new one.
        """
        try:
            await self._queues.check(connection)
        except MissingError:
            if not self._stopping:
                self._log.write(logging.WARNING, "queue.calls_missing", queue=self.queue_name)
                connection.mark_lost()
            return False
        return await connection.restore(*self.own())

    def own(self) -> Sequence[Queue | Binding]:
        """See QueueConsumer.own. Leaves the queues of calls out; see `restore`."""
        return [
            self._control_queue,
            *self._queues.retry_bindings(),
            *self._queues.bindings(self._routes),
        ]

    def restored(self) -> None:
        """See Watched.restored."""

    def foreign(self) -> Sequence[Binding]:
        """See Watched.foreign."""
        return []

    def checked(self, missing: bool) -> None:
        """See Watched.checked."""

    def _start_handling(self, channel: MessageChannel, message: Delivered) -> None:
        if message.routing_key in self._batch_routes:
            self._start_batch(channel, message)
        elif message.oversized:
            self._refuse(
                channel, message, reasons.REQUEST_TOO_LARGE, "The request is larger than 4 MiB."
            )
        elif len(self._running) >= _MAX_CALLS or self._bytes > _MAX_BYTES:
            self._refuse(channel, message, reasons.OVERLOADED, "The worker is overloaded.")
        else:
            self._bytes += len(message.body)
            self._running[message] = self._loop.create_task(self._handle(channel, message))

    def _start_batch(self, channel: MessageChannel, message: Delivered) -> None:
        route = self._batch_routes[message.routing_key]
        try:
            calls = unpack(message.body)
        except ServiceError as error:  # without ids no caller can get a reply
            self._security_log.refuse_message(route, error.reason)
            channel.ack(message.tag)
            return
        batch = ReceivedBatch(message.tag, len(calls), redelivered=message.redelivered)
        for correlation_id, request in calls:
            call = BatchedCall(batch, route, correlation_id, message, request)
            self._start_handling(channel, call)

    def _refuse(
        self, channel: MessageChannel, message: Delivered, reason: Reason, text: str
    ) -> None:
        error = ServiceError(reason, text, retry_after=1)

        async def refuse() -> None:
            try:
                if (replies := await self._replies.open(message)) is not None:
                    self._sender.send(replies, message, error_reply(error))
                acknowledge(channel, message)
            finally:
                del self._refusing[message]

        self._refusing[message] = self._loop.create_task(refuse())

    async def _handle(self, channel: MessageChannel, message: Delivered) -> None:
        key = (message.reply_to, message.correlation_id)
        started = settled = False
        replies = None if message.encoded_headers else self._replies.by_user.get(message.user_id)
        request, arrived = message.body, 0.0
        try:
            if replies is None or replies.closed or not message.reply_to.startswith(replies.prefix):
                replies = await self._replies.open(message)
            if replies is None or key in self._controls.cancelled:
                acknowledge(channel, message)
                return
            self._calls[key] = message
            started = self._limit.try_acquire()
            if not started:
                arrived = time.monotonic()
                await self._limit.acquire()
                started = True
                spent = spend_budget(request, time.monotonic() - arrived)
                if spent is None:
                    self._sender.send(replies, message, _expired())
                    acknowledge(channel, message)
                    settled = True
                    return
                request = spent
            handling = self._handler(message.routing_key, request, replies.service)
            if isinstance(handling, AsyncGenerator):
                await self._stream(replies, message, key, handling)
            else:
                self._sender.send(replies, message, await handling)
            acknowledge(channel, message)
            settled = True
            if len(self._running) == 1:
                channel.transport.flush()
            if not channel.transport.writable:  # the slot stays taken while replies pile up
                await channel.transport.wait_writable()
        except asyncio.CancelledError:
            if not settled:
                waited = time.monotonic() - arrived if arrived else 0.0
                self._end_cancelled(channel, replies, message, waited, started=started)
        except Exception as error:  # noqa: BLE001  # every call must be settled
            self._log.write(
                logging.ERROR, "bus.call_failed", route=message.routing_key, exc_info=error
            )
            acknowledge(channel, message)
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
        replies: MessageChannel | None,
        message: Delivered,
        waited: float,
        *,
        started: bool,
    ) -> None:
        """Settle a call that its caller or the end of this server has cancelled."""
        if (message.reply_to, message.correlation_id) not in self._controls.cancelled:
            # this server stops: the caller needs a reply
            if started or message.routing_key in self._deleted:
                outcome = Outcome.UNKNOWN if started else Outcome.NO_EFFECT
                stopped = unavailable(reasons.SERVER_STOPPED, "The worker has stopped.", outcome)
                if replies is not None:
                    self._sender.send(replies, message, error_reply(stopped))
            elif request := spend_budget(message.body, waited):
                self._queues.hand_on(channel, message, request)
            elif replies is not None:
                self._sender.send(replies, message, _expired())
        acknowledge(channel, message)

    async def _stream(
        self,
        channel: MessageChannel,
        message: Delivered,
        key: CallKey,
        replies: AsyncGenerator[bytes, None],
    ) -> None:
        """Send replies as the caller grants credit, until the end or the caller stalls."""
        with self._controls.credit(key) as credit:
            async with aclosing(replies):
                async for reply in replies:
                    if not await credit.acquire():
                        return
                    self._sender.send(channel, message, reply)

    def _handle_broadcast(self, message: Delivered, control: Control, caller: str) -> None:
        """Handle a broadcast without waiting for a slot; only for methods of postbus.bus."""
        route = message.routing_key
        if not route.startswith("postbus.bus.") or len(self._running) >= _MAX_CALLS:
            return
        handling = self._handler(route, control.request, caller)
        if isinstance(handling, AsyncGenerator):
            return
        header = self._sender.header(control.correlation_id)
        message.reply_to = control.reply_to

        async def reply() -> None:
            try:
                body = await handling
                if replies := await self._replies.open(message):
                    replies.publish(replies.exchange, control.reply_to, header, body)
            finally:
                del self._running[handling]

        self._running[handling] = asyncio.create_task(reply())

    def _cancel(self, key: CallKey) -> None:
        if message := self._calls.get(key):
            self._running[message].cancel()

    async def _stop_consuming(self, connection: BrokerConnection) -> None:
        self._stopping = True
        await self._queues.drain(self._channel, lambda: self._limit.waiting)
        await self._channel.stop_consuming(self._queues.names.values())
        # Without its queue, no other server gets the calls of a route that were not started.
        routes = [
            route
            for route in {each.routing_key for each in self._running if isinstance(each, Delivered)}
            if await connection.consumer_count(self._queues.names[route]) is None
        ]
        self._deleted = set(routes)

    def _cancel_waiting(self) -> None:
        self._limit.cancel_waiters()

    async def _close(self, connection: BrokerConnection) -> None:
        await super()._close(connection)
        await connection.close_channel(self._control_channel)


def _expired() -> bytes:
    """Return the encoded reply to a call that was not started within its budget."""
    return error_reply(deadline_exceeded(Outcome.NO_EFFECT))
