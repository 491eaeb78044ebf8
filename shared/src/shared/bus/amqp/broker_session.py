"""A conversation with RabbitMQ, from connecting to losing the connection."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from postbus.bus.v1 import Control, Outcome
from shared.bus.amqp import frames
from shared.bus.amqp.batches import Batch, batch_route, fits, single_route, unpack
from shared.bus.amqp.broker_connection import BROKER_ERRORS, Link, Plane
from shared.bus.amqp.frames import Delivered, Returned
from shared.bus.amqp.message_channel import RefusedError
from shared.bus.amqp.topology import (
    CONTROL_EXCHANGE,
    EVENT_EXCHANGE,
    RPC_EXCHANGE,
    declare_exchanges,
)
from shared.bus.envelope import (
    Call,
    next_payload,
    not_connected,
    payload_of,
    read_request,
    unavailable,
)
from shared.bus.message_bus import CREDIT
from shared.errors import Code, ServiceError, deadline_exceeded
from shared.outbox.outbox import EncodedEvent
from shared.wire import encode

__all__ = ["CONTENT_TYPE", "Session"]

CONTENT_TYPE: Final = "application/x-protobuf"

_DECLARE_TIMEOUT: Final = 5
_CONFIRM_TIMEOUT: Final = 5
_SINGLY_SECONDS: Final = 10
_IDS_AT_ONCE: Final = 256
"""Correlation ids that are drawn together."""
_OURS: Final = ("STREAM_BROKEN", "MALFORMED_MESSAGE", "REPLY_TOO_LARGE")
"""Why a stream is given up at this end, while the other may go on."""
_CONTROL_HEADER: Final = frames.properties(CONTENT_TYPE)


class Session:
    """Two connections: one publishes, and has the calls and their replies; one consumes events.

    RabbitMQ stops reading from connections that publish when it is short of memory or disk: those
    who consume can still say what is done. `lost` is set once a connection, a channel or a consumer
    has gone; the session is then of no more use.
    """

    def __init__(self, publishing: Link, consuming: Link) -> None:
        self.publishing = publishing
        self.consuming = consuming
        self.lost = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pending: dict[str, asyncio.Future[bytes]] = {}
        self._streams: dict[str, _Stream] = {}
        self._gathered: dict[str, list[bytes]] = {}
        self._ids = _Ids()
        self._waiting: dict[str, _Calls] = {}
        """Calls of this moment, by route."""
        self._singly: set[str] = set()
        """Routes where batches were returned of late."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, name: str, plane: Plane) -> AsyncIterator["Session"]:
        """Connect and declare the exchanges; raises BROKER_ERRORS."""
        async with (
            Link.open(url, name, plane) as publishing,
            Link.open(url, f"{name} (events)", plane) as consuming,
        ):
            session = cls(publishing, consuming)
            publishing.on_lost(session.fail)
            consuming.on_lost(session.fail)
            async with asyncio.timeout(_DECLARE_TIMEOUT):
                await session._declare()
            yield session

    @property
    def ready(self) -> bool:
        """Whether messages can be sent at this moment."""
        return not (self.lost.is_set() or self.publishing.blocked)

    async def _declare(self) -> None:
        channel, self._calls = await self.publishing.channel(mandatory=True)
        await declare_exchanges(self.publishing, channel)
        self._calls.on_returned(self._on_returned)
        _, self._controls = await self.publishing.channel()
        _, self._events = await self.publishing.channel(confirms=True)
        # A fresh name: a queue of the connection before may not have gone yet.
        channel, replies = await self.publishing.channel()
        queue = await channel.declare_queue(exclusive=True, auto_delete=True)
        await replies.consume(queue.name, self._on_reply, no_ack=True)
        self._reply_to = queue.name
        self._header = frames.Header(CONTENT_TYPE, queue.name)

    async def call(self, route: str, call: Call) -> bytes:
        """See MessageBus.call."""
        budget = self._budget(call)
        reply: asyncio.Future[bytes] = self._loop.create_future()
        correlation_id = self._ids.next()
        self._pending[correlation_id] = reply
        timer = self._loop.call_later(budget, _expire, reply)
        try:
            if not self._calls.has_room:
                await self._wait_for_room(reply)
            if not reply.done():  # the deadline, or the end of the session
                self._send(route, call.request, correlation_id, budget)
            body = await reply
        except asyncio.CancelledError:
            self._cancel(route, correlation_id)
            raise
        finally:
            timer.cancel()
            del self._pending[correlation_id]
        return payload_of(body, call)

    def _budget(self, call: Call) -> float:
        """Return the seconds that are left; raise unless there are, and a broker that listens."""
        if self.lost.is_set():
            raise not_connected()
        if self.publishing.blocked:
            raise _blocked()
        budget = call.deadline - time.time()
        if budget <= 0:
            raise deadline_exceeded(Outcome.NO_EFFECT)
        return budget

    async def _wait_for_room(self, reply: "asyncio.Future[bytes]") -> None:
        """Wait until the connection takes more, or until the reply tells why not."""
        waiting = asyncio.create_task(self._calls.room())
        try:
            await asyncio.wait((waiting, reply), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()

    def _send(self, route: str, request: bytes, correlation_id: str, budget: float) -> None:
        """Send a call together with the others of this moment; the only one at once."""
        if len(self._pending) == 1:
            self._send_alone(route, request, correlation_id, budget)
            self._calls.flush()
            return
        if route in self._singly or not fits(request):
            self._send_alone(route, request, correlation_id, budget)
            return
        waiting = self._waiting.get(route)
        if waiting is None:
            if not self._waiting:
                self._calls.before_sending(self._send_waiting)
            waiting = self._waiting[route] = _Calls()
        waiting.budget = max(waiting.budget, budget)
        if waiting.add(correlation_id, request):
            del self._waiting[route]
            self._send_batch(route, waiting)

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for route, calls in waiting.items():
            if len(calls.ids) == 1:
                self._send_alone(route, calls.messages[0], calls.ids[0], calls.budget)
            else:
                self._send_batch(route, calls)

    def _send_alone(self, route: str, request: bytes, correlation_id: str, budget: float) -> None:
        header = self._header(correlation_id, max(int(budget * 1000), 1))
        self._calls.publish(RPC_EXCHANGE, route, header, request, mandatory=True)

    def _send_batch(self, route: str, calls: "_Calls") -> None:
        header = self._header("", max(int(calls.budget * 1000), 1))
        self._calls.publish(RPC_EXCHANGE, batch_route(route), header, calls.pack(), mandatory=True)

    def _send_one_by_one(self, route: str, calls: bytes) -> None:
        """Nobody who takes batches serves the route; somebody else may."""
        if route not in self._singly:
            self._singly.add(route)
            self._loop.call_later(_SINGLY_SECONDS, self._singly.discard, route)
        for correlation_id, request in unpack(calls):
            if correlation_id in self._pending:
                budget = read_request(request).deadline_unix_ms / 1000 - time.time()
                self._send_alone(route, request, correlation_id, budget)

    async def stream(self, route: str, call: Call) -> AsyncGenerator[bytes, None]:
        """See MessageBus.stream."""
        correlation_id = self._ids.next()
        budget = self._budget(call)
        stream = self._streams[correlation_id] = _Stream(self, correlation_id)
        try:
            async with asyncio.timeout(budget):
                await self._calls.room()
            self._send_alone(route, call.request, correlation_id, budget)
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
            stream.ended = error.reason not in _OURS
            raise
        finally:
            del self._streams[correlation_id]
            if not stream.ended:
                self._cancel(route, correlation_id)

    async def broadcast(self, route: str, call: Call) -> list[bytes]:
        """See MessageBus.broadcast."""
        budget = self._budget(call)
        correlation_id = self._ids.next()
        replies = self._gathered[correlation_id] = []
        control = Control(
            reply_to=self._reply_to, correlation_id=correlation_id, request=call.request
        )
        self._controls.publish(CONTROL_EXCHANGE, route, _CONTROL_HEADER, encode(control))
        try:
            await asyncio.sleep(budget)  # nobody knows how many there are
        finally:
            del self._gathered[correlation_id]
        payloads = []
        for reply in replies:
            with suppress(ServiceError):  # one that is not well does not hide the others
                payloads.append(payload_of(reply))
        return payloads

    def _cancel(self, route: str, correlation_id: str) -> None:
        """Tell every worker that serves the route: one of them may have the call."""
        control = Control(reply_to=self._reply_to, correlation_id=correlation_id, cancel=True)
        if not self.lost.is_set():
            self._controls.publish(CONTROL_EXCHANGE, route, _CONTROL_HEADER, encode(control))

    def give_credit(self, queue: str, correlation_id: str, credit: int) -> None:
        """Let the worker that has `queue` send more of a stream."""
        control = Control(reply_to=self._reply_to, correlation_id=correlation_id, credit=credit)
        if not self.lost.is_set():
            self._controls.publish("", queue, _CONTROL_HEADER, encode(control))

    async def publish(self, event: EncodedEvent) -> None:
        """See MessageBus.publish_encoded."""
        header = frames.properties(
            CONTENT_TYPE, persistent=True, message_id=event.id, type_=event.type
        )
        await self.publish_confirmed(EVENT_EXCHANGE, event.type, header, event.body)

    async def publish_confirmed(
        self, exchange: str, routing_key: str, header: bytes, body: bytes
    ) -> None:
        """Hand over a message; UNAVAILABLE unless the broker confirms that it has it."""
        if self.publishing.blocked:
            raise _blocked()
        try:
            async with asyncio.timeout(_CONFIRM_TIMEOUT):
                await self._events.publish_confirmed(exchange, routing_key, header, body)
        except RefusedError:
            raise unavailable("EVENT_REFUSED", "The message broker has refused.") from None
        except BROKER_ERRORS:
            if self.ready:  # a confirm that is late has been lost
                self.fail()
            if self.lost.is_set():
                raise _connection_lost() from None
            raise _blocked(Outcome.UNKNOWN) from None

    def _on_reply(self, message: Delivered) -> None:
        if not message.correlation_id:
            self._on_replies(message)
            return
        reply = self._pending.get(message.correlation_id)
        if reply is not None:
            if message.oversized:
                self._fail_call(message.correlation_id, _too_large())
            elif not reply.done():
                reply.set_result(message.body)
        elif (stream := self._streams.get(message.correlation_id)) is not None:
            stream.put(_too_large() if message.oversized else message)
        elif (
            gathered := self._gathered.get(message.correlation_id)
        ) is not None and not message.oversized:
            gathered.append(message.body)

    def _on_replies(self, message: Delivered) -> None:
        with suppress(ServiceError):  # whoever reaches the broker may send what it likes
            for correlation_id, body in unpack(message.body):
                reply = self._pending.get(correlation_id)
                if reply is not None and not reply.done():
                    reply.set_result(body)

    def _on_returned(self, returned: Returned) -> None:
        correlation_id = returned.correlation_id
        if route := single_route(returned.routing_key):
            self._send_one_by_one(route, returned.body)
            return
        error = unavailable("NO_ROUTE", "No service answers this at the moment.")
        self._fail_call(correlation_id, error)

    def _fail_call(self, correlation_id: str, error: ServiceError) -> None:
        if (reply := self._pending.get(correlation_id)) is not None and not reply.done():
            reply.set_exception(error)
        elif (stream := self._streams.get(correlation_id)) is not None:
            stream.put(error)

    def fail(self) -> None:
        """Give the session up; every call that waits on it fails."""
        if self.lost.is_set():
            return
        self.lost.set()
        for reply in self._pending.values():
            if not reply.done():
                reply.set_exception(_connection_lost())
        for stream in self._streams.values():
            stream.put(_connection_lost())


class _Ids:
    """Makes correlation ids of 128 random bits.

    Any process that may publish to the reply queue could answer a call whose id it can guess: an id
    that one callee sees must say nothing about the ids of other calls.
    """

    __slots__ = ("_unused",)

    def __init__(self) -> None:
        self._unused: list[str] = []

    def next(self) -> str:
        """Return a new id, 32 hex digits."""
        if not self._unused:  # drawn together: one system call for many
            digits = os.urandom(16 * _IDS_AT_ONCE).hex()
            self._unused = [digits[at : at + 32] for at in range(0, len(digits), 32)]
        return self._unused.pop()


class _Calls(Batch):
    """Calls that leave together; `budget` is the longest of theirs, in seconds."""

    __slots__ = ("budget",)

    def __init__(self) -> None:
        super().__init__()
        self.budget = 0.0


class _Stream:
    """The replies to one call that streams; gives credit as they are taken."""

    def __init__(self, session: Session, correlation_id: str) -> None:
        self.ended = False
        self._session = session
        self._correlation_id = correlation_id
        self._replies: asyncio.Queue[Delivered | ServiceError] = asyncio.Queue()
        self._taken = 0

    def put(self, reply: Delivered | ServiceError) -> None:
        """Take a reply, or why none will come. Replies beyond the credit break the stream."""
        waiting = self._replies.qsize()
        if isinstance(reply, ServiceError) or waiting < CREDIT:
            self._replies.put_nowait(reply)
        elif waiting == CREDIT:
            self._replies.put_nowait(_beyond_credit())

    async def next(self) -> bytes:
        """Wait for the next reply."""
        reply = await self._replies.get()
        if isinstance(reply, ServiceError):
            raise reply
        self._taken += 1
        if self._taken >= CREDIT // 2 and reply.reply_to:
            self._session.give_credit(reply.reply_to, self._correlation_id, self._taken)
            self._taken = 0
        return reply.body


def _expire(reply: "asyncio.Future[bytes]") -> None:
    if not reply.done():
        reply.set_exception(deadline_exceeded())


def _beyond_credit() -> ServiceError:
    text = "The answer came faster than it was asked for."
    return unavailable("STREAM_BROKEN", text, Outcome.UNKNOWN)


def _too_large() -> ServiceError:
    text = "The answer is too large to be read."
    return ServiceError(Code.OUT_OF_RANGE, "REPLY_TOO_LARGE", text, outcome=Outcome.UNKNOWN)


def _blocked(outcome: int = Outcome.NO_EFFECT) -> ServiceError:
    text = "The message broker is short of memory or disk."
    return unavailable("BROKER_BLOCKED", text, outcome)


def _connection_lost() -> ServiceError:
    return unavailable(
        "CONNECTION_LOST",
        "The connection to the message broker broke; the change may have happened.",
        Outcome.UNKNOWN,
    )
