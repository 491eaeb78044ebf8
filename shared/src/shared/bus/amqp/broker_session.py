"""A broker session: calls, streams and publications over the two connections of one process."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

from postbus.bus.v1 import Control, Outcome
from shared.bus.amqp import frames
from shared.bus.amqp.batches import MAX_BATCHED, Batch, Batches, batch_route, single_route, unpack
from shared.bus.amqp.broker_connection import (
    BROKER_ERRORS,
    BrokerConnection,
    MessageChannel,
    RefusedError,
)
from shared.bus.amqp.frames import Delivered, Returned
from shared.bus.amqp.lost_calls import LostCalls
from shared.bus.amqp.topology import ALL_EVENTS, CALL_EXCHANGE, CONTROL_EXCHANGE, EVENT_EXCHANGE
from shared.bus.envelope import (
    Call,
    CallResult,
    next_payload,
    not_connected,
    result_of,
    unavailable,
    with_budget,
)
from shared.bus.message_bus import CREDIT
from shared.errors import Code, ServiceError, deadline_exceeded
from shared.outbox.outbox import EncodedEvent
from shared.wire import encode

__all__ = ["CONTENT_TYPE", "BrokerSession"]

CONTENT_TYPE: Final = "application/x-protobuf"

_DECLARE_TIMEOUT: Final = 5
_CONFIRM_TIMEOUT: Final = 5
_UNBATCHED_SECONDS: Final = 10
"""How long a route gets no batches after one was returned as unroutable."""
_BUDGETS_PER_SECOND: Final = 10
"""Budgets that differ by more than 100 ms are in different batches."""
_IDS_AT_ONCE: Final = 256
"""Correlation ids per read of the system's random numbers."""
_CALLER_ERRORS: Final = ("STREAM_BROKEN", "MALFORMED_MESSAGE", "REPLY_TOO_LARGE")
"""Errors after which the caller cancels the stream, because the server may still send."""
_CONTROL_HEADER: Final = frames.properties(CONTENT_TYPE)

_PendingCall = tuple["asyncio.Future[bytes]", str, float, float]
"""Reply, route, deadline and time of sending (by `time.monotonic()`); a plain tuple is fast."""


class BrokerSession:
    """Two connections: one publishes and carries calls and replies, one consumes events.

    RabbitMQ stops reading from publishing connections when it is short of memory or disk; events
    on the other connection can then still be acknowledged. `lost` is set once a connection, a
    channel or a consumer is lost; the session is not used any more.
    """

    def __init__(self, publishing: BrokerConnection, consuming: BrokerConnection) -> None:
        self.publishing = publishing
        self.consuming = consuming
        self.lost = asyncio.Event()
        self._transport = publishing.transport
        self._loop = asyncio.get_running_loop()
        self._calls: dict[str, _PendingCall] = {}
        self._streams: dict[str, _Stream] = {}
        self._broadcasts: dict[str, list[bytes]] = {}
        self._lost_calls: LostCalls | None = None
        self._ids: Iterator[str] = itertools.chain.from_iterable(iter(_random_ids, None))

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, name: str) -> AsyncIterator["BrokerSession"]:
        """Connect and declare the exchanges; raises BROKER_ERRORS."""
        async with (
            BrokerConnection.open(url, name) as publishing,
            BrokerConnection.open(url, f"{name} (events)") as consuming,
        ):
            session = cls(publishing, consuming)
            publishing.on_lost = consuming.on_lost = session.mark_lost
            async with asyncio.timeout(_DECLARE_TIMEOUT):
                await session._declare()
            yield session

    @property
    def ready(self) -> bool:
        """Whether messages can be sent at this moment."""
        return not (self.lost.is_set() or self._transport.blocked)

    async def _declare(self) -> None:
        requests = await self.publishing.channel()
        exchanges = requests.channel
        # a direct exchange costs the broker less than a topic exchange
        await exchanges.declare_exchange(CALL_EXCHANGE, "direct", durable=True)
        for name in (CONTROL_EXCHANGE, EVENT_EXCHANGE):
            await exchanges.declare_exchange(name, "topic", durable=True)
        await self.publishing.declare(ALL_EVENTS)
        requests.on_returned(self._on_returned)
        self._controls = await self.publishing.channel()
        self._lost_calls = LostCalls(self._controls, self._sent_before, self._fail_call)
        self._events = await self.publishing.channel(confirms=True)
        replies = await self.publishing.channel()
        # The broker names the queue: the one of a lost connection may still exist.
        queue = await replies.channel.declare_queue(exclusive=True, auto_delete=True)
        await replies.consume(queue.name, self._on_reply, no_ack=True)
        self._reply_to = queue.name
        self._sender = _CallSender(requests, queue.name)

    async def call(self, route: str, call: Call) -> CallResult:
        """Send a call and return its result; see MessageBus.call."""
        budget = self._budget(call)
        reply: asyncio.Future[bytes] = self._loop.create_future()
        correlation_id, deadline = next(self._ids), call.deadline
        self._calls[correlation_id] = (reply, route, deadline, deadline - budget)
        timer = self._loop.call_later(budget, self._expire, route, correlation_id, reply)
        try:
            if not self._transport.writable:
                await self._wait_writable(reply)
                budget = call.remaining
            if not reply.done():  # the deadline has passed, or the session is lost
                only = len(self._calls) == 1
                self._sender.send(route, call.request, correlation_id, budget, only=only)
            body = await reply
        except asyncio.CancelledError:
            self._cancel(route, correlation_id)
            raise
        finally:
            timer.cancel()
            del self._calls[correlation_id]
        return result_of(body)

    def _budget(self, call: Call) -> float:
        """Return the remaining seconds; raise if there are none, or if nothing can be sent."""
        if self.lost.is_set():
            raise not_connected()
        if self._transport.blocked:
            raise _blocked()
        budget = call.deadline - time.monotonic()
        if budget <= 0:
            raise deadline_exceeded(Outcome.NO_EFFECT)
        return budget

    def _expire(self, route: str, correlation_id: str, reply: "asyncio.Future[bytes]") -> None:
        """Fail a call at its deadline, and cancel it: it may have waited in its queue for a part
        of the time, and the server's budget begins when it arrives there.
        """
        if not reply.done():
            reply.set_exception(deadline_exceeded())
            if self._transport.writable:
                self._cancel(route, correlation_id)

    async def _wait_writable(self, reply: "asyncio.Future[bytes]") -> None:
        """Wait until the socket is writable, or until the call fails (deadline, lost session)."""
        waiting = asyncio.create_task(self._transport.wait_writable())
        try:
            await asyncio.wait((waiting, reply), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()

    async def stream(self, route: str, call: Call) -> AsyncGenerator[bytes, None]:
        """Send a call and yield the payload of each reply; see MessageBus.stream."""
        correlation_id = next(self._ids)
        budget = self._budget(call)
        stream = self._streams[correlation_id] = _Stream(self, correlation_id, route)
        try:
            async with asyncio.timeout(budget):
                await self._transport.wait_writable()
            self._sender.send_single(route, call.request, correlation_id, call.remaining)
            for sequence in itertools.count(1):
                async with asyncio.timeout(call.remaining):
                    payload = next_payload(await stream.next(), sequence)
                if payload is None:
                    stream.ended = True
                    return
                yield payload
        except TimeoutError:
            raise deadline_exceeded() from None
        except ServiceError as error:
            stream.ended = error.reason not in _CALLER_ERRORS
            raise
        finally:
            del self._streams[correlation_id]
            if not stream.ended:
                self._cancel(route, correlation_id)

    async def broadcast(self, route: str, call: Call) -> list[bytes]:
        """Call every process that serves the route; see MessageBus.broadcast."""
        budget = self._budget(call)
        correlation_id = next(self._ids)
        replies = self._broadcasts[correlation_id] = []
        request = with_budget(call.request, budget)
        control = Control(correlation_id=correlation_id, request=request)
        self.send_control(CONTROL_EXCHANGE, route, control)
        try:
            await asyncio.sleep(budget)  # the number of processes is unknown
        finally:
            del self._broadcasts[correlation_id]
        payloads = []
        for reply in replies:
            with suppress(ServiceError):  # the error of one process must not hide the other replies
                payloads.append(result_of(reply).payload)
        return payloads

    def _cancel(self, route: str, correlation_id: str) -> None:
        """Publish a cancellation to all servers of the route: any of them may run the call."""
        control = Control(correlation_id=correlation_id, cancel=True)
        self.send_control(CONTROL_EXCHANGE, route, control)

    def send_control(self, exchange: str, routing_key: str, control: Control) -> None:
        """Publish a control message with the reply queue of this session, unless it is lost."""
        if not self.lost.is_set():
            control.reply_to = self._reply_to
            self._controls.publish(exchange, routing_key, _CONTROL_HEADER, encode(control))

    async def publish(self, event: EncodedEvent) -> None:
        """Publish a stored event; see MessageBus.publish_encoded."""
        header = frames.properties(
            CONTENT_TYPE, persistent=True, message_id=event.id, type_=event.type
        )
        await self.publish_confirmed(EVENT_EXCHANGE, event.type, header, event.body)

    async def publish_confirmed(
        self, exchange: str, routing_key: str, header: bytes, body: bytes
    ) -> None:
        """Publish a message and return once the broker has confirmed it.

        UNAVAILABLE otherwise: EVENT_REFUSED, BROKER_BLOCKED or CONNECTION_LOST.
        """
        if self._transport.blocked:
            raise _blocked()
        try:
            async with asyncio.timeout(_CONFIRM_TIMEOUT):
                await self._events.publish_confirmed(exchange, routing_key, header, body)
        except RefusedError:
            text = "The message broker refused the event."
            raise unavailable("EVENT_REFUSED", text) from None
        except BROKER_ERRORS:
            if self.ready:  # a late confirm means that the connection is dead
                self.mark_lost()
            if self.lost.is_set():
                raise _connection_lost() from None
            raise _blocked(Outcome.UNKNOWN) from None

    def _on_reply(self, message: Delivered) -> None:
        correlation_id = message.correlation_id
        if not correlation_id:
            self._on_batch(message)
        elif message.oversized:
            self._fail_call(correlation_id, _too_large())
        elif (pending := self._calls.get(correlation_id)) is not None:
            reply = pending[0]
            if not reply.done():
                reply.set_result(message.body)
        elif (stream := self._streams.get(correlation_id)) is not None:
            stream.put(message)
        elif (replies := self._broadcasts.get(correlation_id)) is not None:
            replies.append(message.body)

    def _on_batch(self, message: Delivered) -> None:
        with suppress(ServiceError):  # any client of the broker can send malformed batches
            for correlation_id, body in unpack(message.body):
                pending = self._calls.get(correlation_id)
                if pending is not None and not pending[0].done():
                    pending[0].set_result(body)

    def _on_returned(self, returned: Returned) -> None:
        if route := single_route(returned.routing_key):
            self._sender.resend_unbatched(route, returned.body, self._calls)
        else:
            error = unavailable("NO_ROUTE", "No worker serves the method at the moment.")
            self._fail_call(returned.correlation_id, error)

    def _sent_before(self, moment: float) -> Iterator[tuple[str, str]]:
        """Yield correlation id and route of each call and stream sent before `moment`."""
        for correlation_id, (_, route, _, sent) in self._calls.items():
            if sent > moment:  # the calls are in the order of sending
                break
            yield correlation_id, route
        for correlation_id, stream in self._streams.items():
            if stream.sent <= moment:
                yield correlation_id, stream.route

    def _fail_call(self, correlation_id: str, error: ServiceError) -> None:
        if (pending := self._calls.get(correlation_id)) is not None:
            if not pending[0].done():
                pending[0].set_exception(error)
        elif (stream := self._streams.get(correlation_id)) is not None:
            stream.put(error)

    def mark_lost(self) -> None:
        """Set `lost`, on both connections too, and fail every pending call and stream."""
        if self.lost.is_set():
            return
        self.lost.set()
        if self._lost_calls is not None:
            self._lost_calls.stop()
        self.publishing.mark_lost()
        self.consuming.mark_lost()
        for reply, *_ in self._calls.values():
            if not reply.done():
                reply.set_exception(_connection_lost())
        for stream in self._streams.values():
            stream.put(_connection_lost())


class _CallSender:
    """Publishes calls. Small calls of one event-loop tick to one route share a message.

    A batch that is returned as unroutable is sent again call by call: a server without support for
    batches may serve the route.
    """

    def __init__(self, channel: MessageChannel, reply_to: str) -> None:
        self._channel = channel
        self._header = frames.Header(CONTENT_TYPE, reply_to)
        self._batches: Batches[tuple[str, int]] = Batches(self._send_batch)
        self._unbatched_routes: set[str] = set()

    def send(
        self, route: str, request: bytes, correlation_id: str, budget: float, *, only: bool
    ) -> None:
        """Send a call, in a batch if possible; immediately if it is the `only` pending call.

        Calls share a batch only if their budgets differ by less than 100 ms: the batch expires at
        the end of the longest one.
        """
        if only or len(request) > MAX_BATCHED or route in self._unbatched_routes:
            self.send_single(route, request, correlation_id, budget, immediately=only)
        else:
            target = route, int(budget * _BUDGETS_PER_SECOND)
            request = with_budget(request, budget)
            self._batches.add(self._channel.transport, target, correlation_id, request, budget)

    def send_single(
        self,
        route: str,
        request: bytes,
        correlation_id: str,
        budget: float,
        *,
        immediately: bool = False,
    ) -> None:
        """Send a call in a message of its own; it expires after `budget` seconds."""
        header = self._header(correlation_id, max(int(budget * 1000), 1))
        request = with_budget(request, budget)
        self._channel.publish(
            CALL_EXCHANGE, route, header, request, mandatory=True, immediately=immediately
        )

    def resend_unbatched(
        self, route: str, batch: bytes, pending: Mapping[str, _PendingCall]
    ) -> None:
        """Send the pending calls of a returned batch one by one."""
        if route not in self._unbatched_routes:
            self._unbatched_routes.add(route)
            loop = asyncio.get_running_loop()
            loop.call_later(_UNBATCHED_SECONDS, self._unbatched_routes.discard, route)
        now = time.monotonic()
        for correlation_id, request in unpack(batch):
            if correlation_id in pending:
                _, _, deadline, _ = pending[correlation_id]
                self.send_single(route, request, correlation_id, deadline - now)

    def _send_batch(self, target: tuple[str, int], batch: Batch) -> None:
        route, _ = target
        if len(batch.ids) == 1:
            self.send_single(route, batch.messages[0], batch.ids[0], batch.budget)
            return
        header = self._header("", max(int(batch.budget * 1000), 1))
        key = batch_route(route)
        self._channel.publish(CALL_EXCHANGE, key, header, batch.pack(), mandatory=True)


class _Stream:
    """The replies of a streaming call; grants credit as they are consumed."""

    def __init__(self, session: BrokerSession, correlation_id: str, route: str) -> None:
        self.route = route
        self.sent = time.monotonic()
        self.ended = False
        self._session = session
        self._correlation_id = correlation_id
        self._replies: asyncio.Queue[Delivered | ServiceError] = asyncio.Queue()
        self._consumed = 0

    def put(self, reply: Delivered | ServiceError) -> None:
        """Add a reply, or the error that ends the stream. Replies beyond the credit break it."""
        waiting = self._replies.qsize()
        if isinstance(reply, ServiceError) or waiting < CREDIT:
            self._replies.put_nowait(reply)
        elif waiting == CREDIT:
            text = "The worker sent more replies than the caller allowed."
            self._replies.put_nowait(unavailable("STREAM_BROKEN", text, Outcome.UNKNOWN))

    async def next(self) -> bytes:
        """Wait for the next reply and return it; raise the error that ends the stream."""
        reply = await self._replies.get()
        if isinstance(reply, ServiceError):
            raise reply
        self._consumed += 1
        if self._consumed >= CREDIT // 2 and reply.reply_to:
            credit = Control(correlation_id=self._correlation_id, credit=self._consumed)
            self._session.send_control("", reply.reply_to, credit)
            self._consumed = 0
        return reply.body


def _random_ids() -> list[str]:
    """Return new correlation ids of 128 random bits, as 32 hex digits each.

    Any process that may publish to the reply queue could reply to a call whose id it can guess: the
    ids that one server sees must not reveal the ids of other calls.
    """
    digits = os.urandom(16 * _IDS_AT_ONCE).hex()
    return [digits[at : at + 32] for at in range(0, len(digits), 32)]


def _too_large() -> ServiceError:
    text = "The reply exceeds 16 MiB."
    return ServiceError(Code.OUT_OF_RANGE, "REPLY_TOO_LARGE", text, outcome=Outcome.UNKNOWN)


def _blocked(outcome: int = Outcome.NO_EFFECT) -> ServiceError:
    text = "The message broker is short of memory or disk."
    return unavailable("BROKER_BLOCKED", text, outcome)


def _connection_lost() -> ServiceError:
    return unavailable(
        "CONNECTION_LOST",
        "The connection to the message broker was lost; the change may have happened.",
        Outcome.UNKNOWN,
    )
