"""A broker session: calls, streams and publications over the two connections of one process."""

import asyncio
import itertools
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import structlog
from pamqp.commands import Exchange as ExchangeMethods

from postbus.bus.v1 import Control, Outcome
from shared.bus.amqp import frames
from shared.bus.amqp.batches import MAX_BATCHED, Batch, Batches, batch_route, single_route, unpack
from shared.bus.amqp.broker_connection import (
    BROKER_ERRORS,
    BrokerConnection,
    MessageChannel,
    MissingError,
    RefusedError,
    UnroutedError,
    broker_errors,
)
from shared.bus.amqp.frames import Delivered, Returned
from shared.bus.amqp.lost_calls import LostCalls
from shared.bus.amqp.publishers import Publishers
from shared.bus.amqp.topology import Binding, Queue, exchange, owner, service_exchanges
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
from shared.security_log import SecurityLog
from shared.wire import encode

__all__ = ["CONTENT_TYPE", "BrokerSession"]

_log = structlog.get_logger()
CONTENT_TYPE: Final = "application/x-protobuf"

_DECLARE_TIMEOUT: Final = 5
_CONFIRM_TIMEOUT: Final = 5
_UNBATCHED_SECONDS: Final = 10
"""How long a route gets no batches after one was returned as unroutable."""
_BUDGETS_PER_SECOND: Final = 10
"""Budgets that differ by more than 100 ms are in different batches."""
_IDS_AT_ONCE: Final = 256
"""Correlation ids per read of the system's random numbers."""
_ABSENT_SECONDS: Final = 2.5
"""Shortest time for which a lost exchange of events stays away; consumers check every second."""
_HOLD_SECONDS: Final = 2.0
"""Time in which consumers bind their queues to a restored exchange, before events are sent."""
_CALLER_ERRORS: Final = ("STREAM_BROKEN", "MALFORMED_MESSAGE", "REPLY_TOO_LARGE")
"""Errors after which the caller cancels the stream, because the server may still send."""

_PendingCall = tuple["asyncio.Future[bytes]", str, float, float, str]
"""Reply, route, deadline and time of sending (by `time.monotonic()`), and the service that may
reply; a plain tuple is fast."""


class BrokerSession:
    """Two connections: one publishes and carries calls and replies, one consumes events.

    RabbitMQ stops reading from publishing connections when it is short of memory or disk; events
    on the other connection can then still be acknowledged. `lost` is set once a connection, a
    channel or a consumer is lost; the session is not used any more. Each exchange of another
    service has a channel of its own, whose loss concerns only that service.
    """

    def __init__(
        self,
        publishing: BrokerConnection,
        consuming: BrokerConnection,
        service: str,
        security_log: SecurityLog | None = None,
    ) -> None:
        self.publishing = publishing
        self.consuming = consuming
        self.service = service
        self.security_log = security_log or SecurityLog()
        self.publishers = Publishers(publishing, self._on_returned, self._on_channel_lost)
        self.lost = asyncio.Event()
        self.suspicious = asyncio.Event()
        """Set once something that the session owns may be missing at the broker."""
        self._events_missing_since: float | None = None
        self._events_held_until = 0.0
        self._senders: dict[str, _CallSender] = {}
        """By route; the routes of a service share one."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport = publishing.transport
        self._loop = asyncio.get_running_loop()
        self._calls: dict[str, _PendingCall] = {}
        self._streams: dict[str, _Stream] = {}
        self._broadcasts: dict[str, tuple[str, list[bytes]]] = {}
        """Route and replies, by correlation id."""
        self._lost_calls: LostCalls | None = None
        self._ids: Iterator[str] = itertools.chain.from_iterable(iter(_random_ids, None))

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, service: str, security_log: SecurityLog | None = None
    ) -> AsyncIterator["BrokerSession"]:
        """Connect and declare the exchanges of `service`; raises BROKER_ERRORS."""
        async with (
            BrokerConnection.open(url, service) as publishing,
            BrokerConnection.open(url, f"{service} (events)") as consuming,
        ):
            session = cls(publishing, consuming, service, security_log)
            publishing.on_lost = consuming.on_lost = session.mark_lost
            async with asyncio.timeout(_DECLARE_TIMEOUT):
                await session._declare()
            yield session

    @property
    def ready(self) -> bool:
        """Whether messages can be sent at this moment."""
        return not (self.lost.is_set() or self._transport.blocked)

    async def _declare(self) -> None:
        # A fresh name: the queue of a lost connection may still exist.
        self._reply_to = name = f"{self.service}.replies.{secrets.token_hex(16)}"
        binding = Binding(name, exchange("replies", self.service), name)
        self._reply_queue = Queue(
            name=name, arguments={}, bindings=[binding], exclusive=True, auto_delete=True
        )
        replies = await self.publishing.channel()
        await replies.consume(
            [name],
            self._on_reply,
            declared=[*service_exchanges(self.service), self._reply_queue],
            no_ack=True,
        )
        self._events = await self._open_events()
        self._control_header = frames.properties(CONTENT_TYPE, user_id=self.service)
        self._lost_calls = LostCalls(self._probe, self._sent_before, self._fail_call)

    async def _open_events(self) -> MessageChannel:
        """Open the channel for confirmed messages; the session survives its loss."""
        channel: MessageChannel | None = None

        def lost(*_reason: Any) -> None:
            self.suspicious.set()
            if channel is not None:
                self.publishing.forget_channel(channel)

        channel = await self.publishing.channel(confirms=True, on_lost=lost)
        return channel

    async def wait_suspicious(self, seconds: float) -> None:
        """Wait until something may be missing, for some seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.suspicious.wait()

    async def restore(self) -> bool:
        """Declare the objects of the session, but the exchange of its events; raises BROKER_ERRORS.

        Returns whether something was missing.
        """
        events = exchange("events", self.service)
        exchanges = [each for each in service_exchanges(self.service) if each.name != events]
        return await self.publishing.restore(*exchanges, self._reply_queue)

    async def restore_events(self) -> None:
        """Declare the exchange of the events if it is missing; raises BROKER_ERRORS.

        A consumer cannot see that its binding is gone, but that the exchange is. So the exchange
        stays away for longer than the time between two checks of each consumer, and events are
        published again once the consumers have had time to bind their queues.
        """
        now = self._loop.time()
        if await self._events_exist():
            if self._events_missing_since is not None:
                self._events_missing_since = None
                self._events_held_until = now + _HOLD_SECONDS
        elif self._events_missing_since is None:
            _log.error("events.exchange_missing", service=self.service)
            self._events_missing_since = now
        elif now >= self._events_missing_since + _ABSENT_SECONDS:
            await self.publishing.declare(*service_exchanges(self.service))
        if self._events.closed:
            self._events = await self._open_events()

    async def _events_exist(self) -> bool:
        name = exchange("events", self.service)
        try:
            await self.publishing.request_all(
                [ExchangeMethods.Declare(exchange=name, passive=True)]
            )
        except MissingError:
            return False
        return True

    async def call(self, route: str, call: Call) -> CallResult:
        """Send a call and return its result; see MessageBus.call."""
        budget = self._budget(call)
        sender = self._senders.get(route) or await self._open_sender(route, budget)
        reply: asyncio.Future[bytes] = self._loop.create_future()
        correlation_id, deadline = next(self._ids), call.deadline
        self._calls[correlation_id] = (reply, route, deadline, deadline - budget, sender.callee)
        sender.pending[correlation_id] = reply
        timer = self._loop.call_later(budget, self._expire, route, correlation_id, reply)
        try:
            if not self._transport.writable:
                await self._wait_writable(reply)
                budget = call.remaining
            if not reply.done():  # the deadline has passed, or the session is lost
                only = len(self._calls) == 1
                sender.send(route, call.request, correlation_id, budget, only=only)
            body = await reply
        except asyncio.CancelledError:
            self._cancel(route, correlation_id)
            raise
        finally:
            timer.cancel()
            del self._calls[correlation_id], sender.pending[correlation_id]
        return result_of(body)

    async def _open_sender(self, route: str, budget: float) -> "_CallSender":
        """Return the sender of the calls of a route.

        UNAVAILABLE, NO_ROUTE if the service that owns the route has no exchange.
        """
        name = exchange("calls", owner(route))
        try:
            async with asyncio.timeout(budget):
                channel = await self.publishers.open(name)
        except MissingError:
            raise _no_route() from None
        except TimeoutError:
            raise deadline_exceeded(Outcome.NO_EFFECT) from None
        except BROKER_ERRORS:
            raise not_connected() from None
        for sender in self._senders.values():
            if sender.channel is channel:
                break
        else:
            sender = _CallSender(channel, self._reply_to, self.service)
        self._senders[route] = sender
        return sender

    def _on_channel_lost(self, channel: MessageChannel) -> None:
        """Fail the pending calls that were sent on a channel: some may have been delivered."""
        for route, sender in list(self._senders.items()):
            if sender.channel is channel:
                del self._senders[route]
                _fail_lost(sender.pending.values(), ())
        streams = self._streams.values()
        _fail_lost((), [each for each in streams if each.sender.channel is channel])

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
        sender = self._senders.get(route) or await self._open_sender(route, budget)
        stream = self._streams[correlation_id] = _Stream(self, correlation_id, sender, route)
        try:
            async with asyncio.timeout(call.remaining):
                await self._transport.wait_writable()
            sender.send_single(route, call.request, correlation_id, call.remaining)
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
        _, replies = self._broadcasts[correlation_id] = route, list[bytes]()
        request = with_budget(call.request, budget)
        control = Control(correlation_id=correlation_id, request=request)
        self.send_control(owner(route), route, control)
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
        self.send_control(owner(route), route, control)

    def send_control(self, service: str, routing_key: str, control: Control) -> None:
        """Publish a control message to a service, unless it or the session is unavailable."""
        if self.lost.is_set():
            return
        control.reply_to = self._reply_to
        self._send_control(service, routing_key, encode(control))

    def _probe(self, route: str) -> None:
        """Publish an empty control message, which is returned if no process serves the route."""
        if self._transport.writable:
            self._send_control(owner(route), route, b"", mandatory=True)

    def _send_control(
        self, service: str, routing_key: str, body: bytes, *, mandatory: bool = False
    ) -> None:
        name = exchange("control", service)
        send = partial(
            MessageChannel.publish,
            exchange=name,
            routing_key=routing_key,
            header=self._control_header,
            body=body,
            mandatory=mandatory,
        )
        if channel := self.publishers.channels.get(name):
            send(channel)
            return
        task = self._loop.create_task(self._open_and_send(name, send))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_and_send(self, name: str, send: Callable[[MessageChannel], None]) -> None:
        with suppress(*BROKER_ERRORS), broker_errors():
            send(await self.publishers.open(name))

    async def publish(self, event: EncodedEvent) -> None:
        """Publish a stored event; see MessageBus.publish_encoded."""
        missing = self._events_missing_since is not None
        if missing or self._loop.time() < self._events_held_until:
            raise _unrouted()
        await self.publish_confirmed(
            exchange("events", self.service),
            event.type,
            event.body,
            message_id=event.id,
            type_=event.type,
        )

    async def publish_confirmed(
        self, exchange: str, routing_key: str, body: bytes, **properties: Any
    ) -> None:
        """Publish a message and return once a queue has stored it.

        `properties` are those of `frames.properties`. UNAVAILABLE otherwise: EVENT_UNROUTED,
        EVENT_REFUSED, BROKER_BLOCKED or CONNECTION_LOST.
        """
        if self._transport.blocked:
            raise _blocked()
        channel = self._events
        properties |= {"content_type": CONTENT_TYPE, "user_id": self.service}
        try:
            async with asyncio.timeout(_CONFIRM_TIMEOUT):
                await channel.publish_confirmed(exchange, routing_key, properties, body)
        except RefusedError:
            text = "The message broker refused the event."
            raise unavailable("EVENT_REFUSED", text) from None
        except UnroutedError:
            self.suspicious.set()
            raise _unrouted() from None
        except BROKER_ERRORS:
            if channel.closed and not self.lost.is_set():
                raise _unrouted(Outcome.UNKNOWN) from None
            if self.ready:  # a late confirm means that the connection is dead
                self.mark_lost()
            if self.lost.is_set():
                raise _connection_lost() from None
            raise _blocked(Outcome.UNKNOWN) from None

    def _on_reply(self, message: Delivered) -> None:
        """Pass a reply to its call: only the service that was called may reply."""
        correlation_id = message.correlation_id
        if not correlation_id:
            self._on_batch(message)
        elif (pending := self._calls.get(correlation_id)) is not None:
            reply, route, _, _, callee = pending
            if message.user_id != callee:
                self.security_log.refuse_sender("reply", route, message.user_id)
            elif message.oversized:
                self._fail_call(correlation_id, _too_large())
            elif not reply.done():
                reply.set_result(message.body)
        elif (stream := self._streams.get(correlation_id)) is not None:
            if message.user_id != owner(stream.route):
                self.security_log.refuse_sender("reply", stream.route, message.user_id)
            else:
                stream.put(_too_large() if message.oversized else message)
        elif (broadcast := self._broadcasts.get(correlation_id)) is not None:
            route, replies = broadcast
            if message.user_id != owner(route):
                self.security_log.refuse_sender("reply", route, message.user_id)
            elif not message.oversized:
                replies.append(message.body)

    def _on_batch(self, message: Delivered) -> None:
        with suppress(ServiceError):  # any client of the broker can send malformed batches
            for correlation_id, body in unpack(message.body):
                if (pending := self._calls.get(correlation_id)) is None:
                    continue
                reply, route, _, _, callee = pending
                if message.user_id != callee:
                    self.security_log.refuse_sender("reply", route, message.user_id)
                elif not reply.done():
                    reply.set_result(body)

    def _on_returned(self, returned: Returned) -> None:
        if route := single_route(returned.routing_key):
            if sender := self._senders.get(route):  # else its channel is lost, its calls failed
                sender.resend_unbatched(route, returned.body, self._calls)
        elif not returned.correlation_id:
            if self._lost_calls is not None:
                self._lost_calls.on_returned(returned.routing_key)
        else:
            self._fail_call(returned.correlation_id, _no_route())

    def _sent_before(self, moment: float) -> Iterator[tuple[str, str]]:
        """Yield correlation id and route of each call and stream sent before `moment`."""
        for correlation_id, (_, route, _, sent, _) in self._calls.items():
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
        replies = (reply for reply, *_ in self._calls.values())
        _fail_lost(replies, self._streams.values())


class _CallSender:
    """Publishes calls. Small calls of one event-loop tick to one route share a message.

    A batch that is returned as unroutable is sent again call by call: a server without support for
    batches may serve the route.
    """

    def __init__(self, channel: MessageChannel, reply_to: str, service: str) -> None:
        self.channel = self._channel = channel
        self.callee = channel.service
        """The service that owns the routes."""
        self.pending: dict[str, asyncio.Future[bytes]] = {}
        """The calls that were sent and have no reply, by correlation id."""
        self._exchange = channel.exchange
        self._header = frames.Header(CONTENT_TYPE, reply_to, service)
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
            self._exchange, route, header, request, mandatory=True, immediately=immediately
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
                _, _, deadline, _, _ = pending[correlation_id]
                self.send_single(route, request, correlation_id, deadline - now)

    def _send_batch(self, target: tuple[str, int], batch: Batch) -> None:
        route, _ = target
        if len(batch.ids) == 1:
            self.send_single(route, batch.messages[0], batch.ids[0], batch.budget)
            return
        header = self._header("", max(int(batch.budget * 1000), 1))
        key = batch_route(route)
        self._channel.publish(self._exchange, key, header, batch.pack(), mandatory=True)


class _Stream:
    """The replies of a streaming call; grants credit as they are consumed."""

    def __init__(
        self, session: BrokerSession, correlation_id: str, sender: _CallSender, route: str
    ) -> None:
        self.route = route
        self.sent = time.monotonic()
        self.ended = False
        self.sender = sender
        self._session = session
        self._service = owner(route)
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
            self._session.send_control(self._service, reply.reply_to, credit)
            self._consumed = 0
        return reply.body


def _random_ids() -> list[str]:
    """Return new correlation ids of 128 random bits, as 32 hex digits each.

    Any process that may publish to the reply queue could reply to a call whose id it can guess: the
    ids that one server sees must not reveal the ids of other calls.
    """
    digits = os.urandom(16 * _IDS_AT_ONCE).hex()
    return [digits[at : at + 32] for at in range(0, len(digits), 32)]


def _fail_lost(replies: "Iterable[asyncio.Future[bytes]]", streams: Iterable[_Stream]) -> None:
    for reply in replies:
        if not reply.done():
            reply.set_exception(_connection_lost())
    for stream in streams:
        stream.put(_connection_lost())


def _no_route() -> ServiceError:
    return unavailable("NO_ROUTE", "No worker serves the method at the moment.")


def _unrouted(outcome: int = Outcome.NO_EFFECT) -> ServiceError:
    return unavailable("EVENT_UNROUTED", "No queue has taken the event.", outcome)


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
