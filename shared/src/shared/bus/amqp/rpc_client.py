"""The client side of calls: sends calls, streaming calls and broadcasts, and takes the replies."""

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import suppress
from typing import Final

from postbus import reasons
from postbus.bus.v1 import Control, Outcome
from shared.bus.amqp.batches import single_route, unpack
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_errors import BROKER_ERRORS, MissingError
from shared.bus.amqp.call_errors import broker_blocked, connection_lost, no_route, reply_too_large
from shared.bus.amqp.call_sender import CallSender, PendingCall
from shared.bus.amqp.control_sender import ControlSender
from shared.bus.amqp.correlation_ids import correlation_ids
from shared.bus.amqp.declarations import Binding, Exchange, Queue
from shared.bus.amqp.lost_calls import LostCalls
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.publishers import Publishers
from shared.bus.amqp.received_messages import Delivered, Returned
from shared.bus.amqp.reply_stream import ReplyStream
from shared.bus.amqp.second_replies import REMEMBERED, SecondReplies
from shared.bus.amqp.topology import exchange, owner
from shared.bus.envelope import (
    Call,
    CallResult,
    next_payload,
    not_connected,
    result_of,
    with_budget,
)
from shared.errors import ServiceError, deadline_exceeded
from shared.security_log import SecurityLog

__all__ = ["RpcClient"]

_CALLER_ERRORS: Final = (reasons.STREAM_BROKEN, reasons.MALFORMED_MESSAGE, reasons.REPLY_TOO_LARGE)
"""Errors after which the caller cancels the stream, because the server may still send."""
_MAX_SHARED_REPLIES: Final = 128
"""Replies to a broadcast that are kept: more than a service has processes."""
_MAX_SHARED_REPLY: Final = 256 * 2**10
"""Bytes of a reply to a broadcast; a larger one is ignored."""


class RpcClient:
    """Makes the calls of a process on one connection, with an exclusive queue for the replies.

    Each exchange of another service has a channel of its own, whose loss concerns only the calls to
    that service. `suspicious` is set once a method of this service itself is unroutable.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        publishers: Publishers,
        service: str,
        *,
        suspicious: asyncio.Event,
        security_log: SecurityLog,
        second_replies: SecondReplies,
    ) -> None:
        # A fresh name: the queue of a lost connection may still exist.
        self._reply_to = name = f"{service}.replies.{secrets.token_hex(16)}"
        binding = Binding(name, exchange("replies", service), name)
        self.reply_queue = Queue(
            name=name, arguments={}, bindings=[binding], exclusive=True, auto_delete=True
        )
        self._service = service
        self._suspicious = suspicious
        self._security_log = security_log
        self._second_replies = second_replies
        self._connection = connection
        self._lost = connection.lost
        self._transport = connection.transport
        self._publishers = publishers
        publishers.on_returned = self._on_returned
        publishers.on_lost = self._on_channel_lost
        self._controls = ControlSender(publishers, service, name)
        self._senders: dict[str, CallSender] = {}
        """By route; the routes of a service share one."""
        self._loop = asyncio.get_running_loop()
        self._calls: dict[str, PendingCall] = {}
        self._streams: dict[str, ReplyStream] = {}
        self._broadcasts: dict[str, tuple[str, list[bytes]]] = {}
        """Route and replies, by correlation id."""
        self._ids = correlation_ids()
        self._lost_calls = LostCalls(self._probe, self._sent_before, self._fail_call, self._ids)

    async def start(self, exchanges: Iterable[Exchange]) -> None:
        """Declare the exchanges of the service, and take replies; raises BROKER_ERRORS."""
        replies = await self._connection.channel()
        await replies.consume(
            [self._reply_to],
            self._on_reply,
            declared=[*exchanges, self.reply_queue],
            no_ack=True,
        )

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

    async def stream(self, route: str, call: Call) -> AsyncGenerator[bytes, None]:
        """Send a call and yield the payload of each reply; see MessageBus.stream."""
        correlation_id = next(self._ids)
        budget = self._budget(call)
        sender = self._senders.get(route) or await self._open_sender(route, budget)
        stream = ReplyStream(correlation_id, route, sender, self._controls)
        self._streams[correlation_id] = stream
        try:
            async with asyncio.timeout(call.remaining):
                await self._transport.wait_writable()
            sender.send_single(route, call.request, correlation_id, call.remaining)
            for sequence in itertools.count(1):
                async with asyncio.timeout(call.remaining):
                    payload = next_payload(await stream.next(), sequence, call)
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
        self._controls.send(owner(route), route, control)
        try:
            await asyncio.sleep(budget)  # the number of processes is unknown
        finally:
            del self._broadcasts[correlation_id]
        payloads = []
        for reply in replies:
            with suppress(ServiceError):  # the error of one process must not hide the other replies
                payloads.append(result_of(reply).payload)
        return payloads

    def _budget(self, call: Call) -> float:
        """Return the remaining seconds; raise if there are none, or if nothing can be sent."""
        if self._lost.is_set():
            raise not_connected()
        if self._transport.blocked:
            raise broker_blocked()
        budget = call.deadline - time.monotonic()
        if budget <= 0:
            raise deadline_exceeded(Outcome.NO_EFFECT)
        return budget

    async def _open_sender(self, route: str, budget: float) -> CallSender:
        """Return the sender of the calls of a route.

        UNAVAILABLE, NO_ROUTE if the service that owns the route has no exchange.
        """
        name = exchange("calls", owner(route))
        try:
            async with asyncio.timeout(budget):
                channel = await self._publishers.open(name)
        except MissingError:
            raise self._no_route(route) from None
        except TimeoutError:
            raise deadline_exceeded(Outcome.NO_EFFECT) from None
        except BROKER_ERRORS:
            raise not_connected() from None
        for sender in self._senders.values():
            if sender.channel is channel:
                break
        else:
            sender = CallSender(channel, self._reply_to, self._service)
        self._senders[route] = sender
        return sender

    async def _wait_writable(self, reply: "asyncio.Future[bytes]") -> None:
        """Wait until the socket is writable, or until the call fails (deadline, lost session)."""
        waiting = asyncio.create_task(self._transport.wait_writable())
        try:
            await asyncio.wait((waiting, reply), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()

    def _expire(self, route: str, correlation_id: str, reply: "asyncio.Future[bytes]") -> None:
        """Fail a call at its deadline, and cancel it: it may have waited in its queue for a part
        of the time, and the server's budget begins when it arrives there.
        """
        if not reply.done():
            reply.set_exception(deadline_exceeded())
            if self._transport.writable:
                self._cancel(route, correlation_id)

    def _cancel(self, route: str, correlation_id: str) -> None:
        if not self._lost.is_set():
            self._controls.cancel(route, correlation_id)

    def _on_reply(self, message: Delivered) -> None:
        """Pass a reply to its call: only the service that was called may reply."""
        correlation_id, sender = message.correlation_id, message.user_id
        if not correlation_id:
            self._on_batch(message)
        elif (pending := self._calls.get(correlation_id)) is not None:
            reply, route, _, _, callee = pending
            if sender != callee:
                self._security_log.refuse_sender("reply", route, sender)
            elif message.oversized:
                self._fail_call(correlation_id, reply_too_large())
            elif not reply.done():
                reply.set_result(message.body)
                answered = self._second_replies.answered  # inline: for each reply
                answered[correlation_id] = route, message.reply_to
                if len(answered) > REMEMBERED:
                    self._second_replies.renew()
            else:
                self._second_replies.check(correlation_id, message)
        elif (stream := self._streams.get(correlation_id)) is not None:
            if sender != stream.sender.callee:
                self._security_log.refuse_sender("reply", stream.route, sender)
            else:
                self._put(stream, message)
        else:
            self._on_shared_reply(message)

    def _put(self, stream: ReplyStream, message: Delivered) -> None:
        """Add a reply to its stream. Replies of two workers break it, by their numbers."""
        first = stream.worker = message.reply_to if stream.worker is None else stream.worker
        if message.reply_to != first:
            self._second_replies.write(stream.route, first, message.reply_to)
        stream.put(reply_too_large() if message.oversized else message)

    def _on_shared_reply(self, message: Delivered) -> None:
        """Take the reply to a broadcast or the answer to a probe; each process may send one."""
        correlation_id, sender = message.correlation_id, message.user_id
        broadcast = self._broadcasts.get(correlation_id)
        route = broadcast[0] if broadcast else self._lost_calls.probed(correlation_id)
        if not route:
            self._second_replies.check(correlation_id, message)
        elif sender != owner(route):
            self._security_log.refuse_sender("reply", route, sender)
        elif message.oversized or len(message.body) > _MAX_SHARED_REPLY:
            return
        elif broadcast:
            if len(broadcast[1]) < _MAX_SHARED_REPLIES:
                broadcast[1].append(message.body)
        else:
            self._lost_calls.on_answer(correlation_id, message.body)

    def _on_batch(self, message: Delivered) -> None:
        try:
            replies = unpack(message.body)
        except ServiceError as error:  # any service that is called can send malformed batches
            self._security_log.refuse_message("reply", error.reason)
            return
        for correlation_id, body in replies:
            if (pending := self._calls.get(correlation_id)) is None:
                self._second_replies.check(correlation_id, message)
                continue
            reply, route, _, _, callee = pending
            if message.user_id != callee:
                self._security_log.refuse_sender("reply", route, message.user_id)
            elif not reply.done():
                reply.set_result(body)
                answered = self._second_replies.answered  # inline: for each reply
                answered[correlation_id] = route, message.reply_to
                if len(answered) > REMEMBERED:
                    self._second_replies.renew()
            else:
                self._second_replies.check(correlation_id, message)

    def _on_returned(self, returned: Returned) -> None:
        if route := single_route(returned.routing_key):
            if sender := self._senders.get(route):  # else its channel is lost, its calls failed
                sender.resend_unbatched(route, returned.body, self._calls)
        elif not returned.correlation_id:
            self._lost_calls.on_returned(returned.routing_key)
        else:
            self._fail_call(returned.correlation_id, self._no_route(returned.routing_key))

    def _no_route(self, route: str) -> ServiceError:
        if owner(route) == self._service:  # a queue or binding of this process may be missing
            self._suspicious.set()
        return no_route()

    def _fail_call(self, correlation_id: str, error: ServiceError) -> None:
        if (pending := self._calls.get(correlation_id)) is not None:
            if not pending[0].done():
                pending[0].set_exception(error)
        elif (stream := self._streams.get(correlation_id)) is not None:
            stream.put(error)

    def _probe(self, id_: str, route: str, waiting_ms: int) -> None:
        if self._transport.writable:
            self._controls.probe(id_, route, waiting_ms)

    def _sent_before(self, moment: float) -> Iterator[tuple[str, str, float]]:
        """Yield correlation id, route and time of each call and stream sent before `moment`."""
        for correlation_id, (_, route, _, sent, _) in self._calls.items():
            if sent > moment:  # the calls are in the order of sending
                break
            yield correlation_id, route, sent
        for correlation_id, stream in self._streams.items():
            if stream.sent <= moment:
                yield correlation_id, stream.route, stream.sent

    def _on_channel_lost(self, channel: MessageChannel) -> None:
        """Fail the pending calls that were sent on a channel: some may have been delivered."""
        for route, sender in list(self._senders.items()):
            if sender.channel is channel:
                del self._senders[route]
                _fail_lost(sender.pending.values(), ())
        streams = self._streams.values()
        _fail_lost((), [each for each in streams if each.sender.channel is channel])

    def mark_lost(self) -> None:
        """Fail every pending call and stream, and probe nothing more."""
        self._lost_calls.stop()
        replies = (reply for reply, *_ in self._calls.values())
        _fail_lost(replies, self._streams.values())


def _fail_lost(replies: "Iterable[asyncio.Future[bytes]]", streams: Iterable[ReplyStream]) -> None:
    for reply in replies:
        if not reply.done():
            reply.set_exception(connection_lost())
    for stream in streams:
        stream.put(connection_lost())
