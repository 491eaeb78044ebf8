"""The server of a worker: takes calls from a queue and publishes the replies."""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final

import structlog
from pamqp.commands import Queue as QueueMethods

from postbus.bus.v1 import Control, Outcome
from shared.bus.amqp import frames
from shared.bus.amqp.batches import MAX_BATCHED, Batch, Batches, batch_route, unpack
from shared.bus.amqp.broker_connection import (
    BROKER_ERRORS,
    BrokerConnection,
    MessageChannel,
    MissingError,
    broker_errors,
)
from shared.bus.amqp.broker_session import CONTENT_TYPE, BrokerSession
from shared.bus.amqp.frames import Delivered
from shared.bus.amqp.queue_consumer import QueueConsumer
from shared.bus.amqp.topology import Binding, Queue, exchange, method_queue
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

_log = structlog.get_logger()

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

_MAX_ERROR: Final = 200
"""Characters of an error in the log."""

_Key = tuple[str, str]
"""A call, by its reply-to and correlation id."""


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
        self._queues = {route: f"{queue}.{route}" for route in routes}
        self._batch_routes = {batch_route(route): route for route in routes}
        self._handler = handler
        self._limit = ConcurrencyLimit(concurrency)
        self._calls: dict[_Key, Delivered] = {}
        self._credits: dict[_Key, _StreamCredit] = {}
        self._cancelled: OrderedDict[_Key, None] = OrderedDict()
        self._bytes = 0
        self._callers: dict[str, MessageChannel] = {}
        """The channel for replies, by the user id of the caller."""
        self._refusing: dict[object, asyncio.Task[None]] = {}
        self._deleted: set[str] = set()
        """Routes whose queue was deleted when this server stopped."""
        self._stopping = False
        self._log = LimitedLog()

    async def start(self, session: BrokerSession) -> None:
        """Serve in this session; raises BROKER_ERRORS.

        Calls and replies share a connection, so that an acknowledgement follows its reply.
        """
        connection, service = session.publishing, session.service
        self._service, self._publishers = service, session.publishers
        controls = f"{service}.control.{secrets.token_hex(16)}"
        self._controls = await self._open_channel(connection)
        self._channel = await self._open_channel(connection, prefetch=_RPC_PREFETCH)
        self._sender = _ReplySender(controls, service)
        keys = (controls, *self._queues)
        control = [Binding(controls, exchange("control", service), key) for key in keys]
        own = self._control_queue = Queue(
            name=controls, arguments={}, bindings=control, exclusive=True, auto_delete=True
        )
        await self._controls.consume([controls], self._on_control, declared=[own], no_ack=True)
        try:
            await self._channel.consume(
                self._queues.values(),
                self._passing_to(self._channel),
                declared=self._method_queues(),
                # after the start of the consumer: a draining server unbinds if it sees no other
                bound=self._bindings(self._queues),
            )
        except MissingError:
            await self._delete_stopped(connection)
            raise
        self._connection = connection

    async def _delete_stopped(self, connection: BrokerConnection) -> None:
        """Delete the queues of calls that have no consumer, so that the next start can succeed.

        A node that is stopped ends its queues seconds before itself, and keeps their names.
        """
        with suppress(*BROKER_ERRORS):  # such as: in use
            await connection.request_all(
                [QueueMethods.Delete(queue=name, if_unused=True) for name in self._queues.values()]
            )

    def _method_queues(self) -> list[Queue]:
        return [method_queue(self._service, name, route) for route, name in self._queues.items()]

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
            await self._queue_states(connection, self._queues)
        except MissingError:
            if not self._stopping:
                _log.warning("queue.calls_missing", queue=self.queue_name)
                connection.mark_lost()
            return False
        return await connection.restore(*self.own())

    def own(self) -> Sequence[Queue | Binding]:
        """See QueueConsumer.own. Leaves the queues of calls out; see `restore`."""
        retry = (binding for queue in self._method_queues() for binding in queue.bindings)
        return [self._control_queue, *retry, *self._bindings(self._queues)]

    def restored(self) -> None:
        """See Watched.restored."""

    def foreign(self) -> Sequence[Binding]:
        """See Watched.foreign."""
        return []

    def checked(self, missing: bool) -> None:
        """See Watched.checked."""

    def _bindings(self, routes: Iterable[str]) -> list[Binding]:
        name = exchange("calls", self._service)
        return [
            Binding(self._queues[route], name, key)
            for route in routes
            for key in (route, batch_route(route))
        ]

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
            call = _BatchedCall(batch, route, correlation_id, message, request)
            self._start_handling(channel, call)

    def _refuse(self, channel: MessageChannel, message: Delivered, reason: str, text: str) -> None:
        error = ServiceError(
            Code.RESOURCE_EXHAUSTED, reason, text, retry_after=1, outcome=Outcome.NO_EFFECT
        )

        async def refuse() -> None:
            try:
                if (replies := await self._open_replies(message)) is not None:
                    self._sender.send(replies, message, error_reply(error))
                self._acknowledge(channel, message)
            finally:
                del self._refusing[message]

        self._refusing[message] = self._loop.create_task(refuse())

    def _acknowledge(self, channel: MessageChannel, message: Delivered) -> None:
        """Acknowledge a finished call; a batch once all its calls have finished."""
        if type(message) is not _BatchedCall:
            channel.ack(message.tag)
            return
        message.batch.unfinished -= 1
        if not message.batch.unfinished:
            channel.ack(message.tag)

    async def _open_replies(self, message: Delivered) -> MessageChannel | None:
        """Return the channel for replies to the sender of a call; None if the call is dropped.

        RabbitMQ validates the user id: a reply goes to an exchange of the service that has called.
        """
        caller, reason = self._caller(message.user_id, message.reply_to), "no sender"
        if caller:
            try:
                with broker_errors():
                    replies = await self._publishers.open(exchange("replies", caller))
                    self._callers[message.user_id] = replies
                    return replies
            except BROKER_ERRORS as error:
                reason = str(error)[:_MAX_ERROR]
        self._log.write(logging.WARNING, "call.dropped", reason=reason)
        return None

    def _caller(self, user_id: str, reply_to: str) -> str:
        """Return the service to which a reply may be sent; empty if there is none.

        A message of this service itself may be the call of another one, which a server has handed
        on as it stopped.
        """
        caller = reply_to.partition(".")[0]
        return caller if user_id in (caller, self._service) else ""

    async def _handle(self, channel: MessageChannel, message: Delivered) -> None:
        key = (message.reply_to, message.correlation_id)
        started = settled = False
        replies = self._callers.get(message.user_id)
        request, arrived = message.body, 0.0
        try:
            if replies is None or replies.closed or not message.reply_to.startswith(replies.prefix):
                replies = await self._open_replies(message)
            if replies is None or key in self._cancelled:
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
                    self._sender.send(replies, message, _expired())
                    self._acknowledge(channel, message)
                    settled = True
                    return
                request = spent
            handling = self._handler(message.routing_key, request)
            if isinstance(handling, AsyncGenerator):
                await self._stream(replies, message, key, handling)
            else:
                self._sender.send(replies, message, await handling)
            self._acknowledge(channel, message)
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
        replies: MessageChannel | None,
        message: Delivered,
        waited: float,
        *,
        started: bool,
    ) -> None:
        """Settle a call that its caller or the end of this server has cancelled."""
        if (message.reply_to, message.correlation_id) not in self._cancelled:
            # this server stops: the caller needs a reply
            if started or message.routing_key in self._deleted:
                outcome = Outcome.UNKNOWN if started else Outcome.NO_EFFECT
                stopped = unavailable("SERVER_STOPPED", "The worker has stopped.", outcome)
                if replies is not None:
                    self._sender.send(replies, message, error_reply(stopped))
            elif request := spend_budget(message.body, waited):
                self._hand_on(channel, message, request)
            elif replies is not None:
                self._sender.send(replies, message, _expired())
        self._acknowledge(channel, message)

    def _hand_on(self, channel: MessageChannel, call: Delivered, request: bytes) -> None:
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
            user_id=self._service,
        )
        channel.publish(exchange("retry", self._service), call.routing_key, header, request)

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
            if not self._caller(message.user_id, control.reply_to):
                return
            if control.request:
                self._handle_broadcast(message, control)
            elif control.cancel:
                self._cancel(key)
            elif credit := self._credits.get(key):
                credit.grant(control.credit)

    def _handle_broadcast(self, message: Delivered, control: Control) -> None:
        """Handle a broadcast without waiting for a slot; only for methods of postbus.bus."""
        route = message.routing_key
        if not route.startswith("postbus.bus.") or len(self._running) >= _MAX_CALLS:
            return
        handling = self._handler(route, control.request)
        if isinstance(handling, AsyncGenerator):
            return
        header = self._sender.header(control.correlation_id)
        message.reply_to = control.reply_to

        async def reply() -> None:
            try:
                body = await handling
                if replies := await self._open_replies(message):
                    replies.publish(replies.exchange, control.reply_to, header, body)
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
        self._stopping = True
        await self._drain()
        await self._channel.stop_consuming(self._queues.values())
        # Without its queue, no other server gets the calls of a route that were not started.
        routes = [
            route
            for route in {each.routing_key for each in self._running if isinstance(each, Delivered)}
            if await connection.consumer_count(self._queues[route]) is None
        ]
        self._deleted = set(routes)

    async def _drain(self) -> None:
        """Unbind the queues of which this is the last server, and handle the waiting calls first.

        The broker deletes an auto-delete queue, with its calls, when its last consumer is gone.
        """
        last = await self._served_alone(self._queues)
        if not last:
            return
        await self._channel.request_all([each.removal() for each in self._bindings(last)])
        alone = await self._served_alone(last)
        if joined := [route for route in last if route not in alone]:  # another one has started
            await self._channel.request_all(
                [frame for each in self._bindings(joined) for frame in each.frames()]
            )
        # No timeout: aiormq closes the channel, which ends the session, if a declaration is
        # cancelled.
        end = self._loop.time() + _DRAIN_SECONDS
        while alone and self._loop.time() < end:
            states = await self._queue_states(self._channel, alone)
            if not any(state.message_count for state in states) and not self._limit.waiting:
                return
            await asyncio.sleep(0.02)

    async def _served_alone(self, routes: Iterable[str]) -> list[str]:
        """Return the routes that no other process serves."""
        routes = list(routes)
        states = await self._queue_states(self._channel, routes)
        return [
            route for route, state in zip(routes, states, strict=True) if state.consumer_count == 1
        ]

    async def _queue_states(
        self, sender: BrokerConnection | MessageChannel, routes: Iterable[str]
    ) -> list[Any]:
        return await sender.request_all(
            [QueueMethods.Declare(queue=self._queues[route], passive=True) for route in routes]
        )

    def _cancel_waiting(self) -> None:
        self._limit.cancel_waiters()

    async def _close(self, connection: BrokerConnection) -> None:
        await super()._close(connection)
        await connection.close_channel(self._controls)


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
        self,
        batch: _OpenBatch,
        route: str,
        correlation_id: str,
        message: Delivered,
        request: bytes,
    ) -> None:
        super().__init__(
            batch.tag, route, correlation_id, message.reply_to, b"", request, message.user_id
        )
        self.redelivered = batch.redelivered
        self.batch = batch


class _ReplySender:
    """Publishes replies. Small replies of one event-loop tick share a message per caller.

    Only callers that send batches get batches. `control_queue` is the reply-to of the replies:
    callers send credit there.
    """

    def __init__(self, control_queue: str, service: str) -> None:
        self.header = frames.Header(CONTENT_TYPE, control_queue, service)
        self._batches: Batches[tuple[MessageChannel, str]] = Batches(self._send_batch)

    def send(self, channel: MessageChannel, message: Delivered, reply: bytes) -> None:
        """Send the reply to a call. `channel` is that of its caller's replies.

        A call that was delivered before may have had its effect there: an error does not claim
        NO_EFFECT.
        """
        reply_to = message.reply_to
        if message.redelivered:
            reply = with_unknown_outcome(reply)
        if type(message) is not _BatchedCall or len(reply) > MAX_BATCHED:
            header = self.header(message.correlation_id)
            channel.publish(channel.exchange, reply_to, header, reply)
        else:
            target = channel, reply_to
            self._batches.add(channel.transport, target, message.correlation_id, reply)

    def _send_batch(self, target: tuple[MessageChannel, str], batch: Batch) -> None:
        channel, reply_to = target
        channel.publish(channel.exchange, reply_to, self.header(""), batch.pack())


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
