"""The client side of calls: sends calls, streaming calls and broadcasts, and awaits the replies."""

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from typing import Final

from postbus import reasons
from postbus.bus.v1 import Control, Outcome
from shared.bus.amqp.batches import single_route
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.call_sender import CallSenders
from shared.bus.amqp.control_sender import ControlSender
from shared.bus.amqp.declarations import Binding, Exchange, Queue
from shared.bus.amqp.lost_calls import LostCalls
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.pending_calls import PendingCalls, correlation_ids
from shared.bus.amqp.publishers import Publishers
from shared.bus.amqp.received_messages import Returned
from shared.bus.amqp.reply_receiver import ReplyReceiver
from shared.bus.amqp.reply_stream import ReplyStream
from shared.bus.amqp.second_replies import SecondReplies
from shared.bus.amqp.topology import exchange, owner
from shared.bus.call import Call, with_budget
from shared.bus.call_errors import broker_blocked, not_connected
from shared.bus.reply import CallResult, next_payload, result_of
from shared.errors import ServiceError, deadline_exceeded
from shared.security_log import SecurityLog

__all__ = ["RpcClient"]

_CALLER_ERRORS: Final = (reasons.STREAM_BROKEN, reasons.MALFORMED_MESSAGE, reasons.REPLY_TOO_LARGE)
"""Errors after which the caller cancels the stream, because the server may still send."""


class RpcClient:
    """Makes the calls of a process on one connection, with an exclusive queue for the replies.

    `suspicious` is set once a method of this service itself is unroutable.
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
        self._connection = connection
        self._lost = connection.lost
        self._transport = connection.transport
        publishers.on_returned = self._on_returned
        publishers.on_lost = self._on_channel_lost
        self._senders = CallSenders(publishers, service, name, suspicious)
        self._controls = ControlSender(publishers, service, name)
        self._ids = correlation_ids()
        self._pending = pending = PendingCalls()
        self._lost_calls = LostCalls(self._probe, pending.sent_before, pending.fail, self._ids)
        self._receiver = ReplyReceiver(
            pending, self._lost_calls, security_log=security_log, second_replies=second_replies
        )
        self._loop = asyncio.get_running_loop()

    async def start(self, exchanges: Iterable[Exchange]) -> None:
        """Declare the exchanges of the service, and take replies; raises BROKER_ERRORS."""
        replies = await self._connection.channel()
        await replies.consume(
            [self._reply_to],
            self._receiver.receive,
            declared=[*exchanges, self.reply_queue],
            no_ack=True,
        )

    async def call(self, route: str, call: Call) -> CallResult:
        """Send a call and return its result; see MessageBus.call."""
        budget = self._budget(call)
        sender = self._senders.by_route.get(route) or await self._senders.open(route, budget)
        reply: asyncio.Future[bytes] = self._loop.create_future()
        calls, correlation_id, deadline = self._pending.calls, next(self._ids), call.deadline
        calls[correlation_id] = (reply, route, deadline, deadline - budget, sender)
        timer = self._loop.call_later(budget, self._expire, route, correlation_id, reply)
        try:
            if not self._transport.writable:
                await self._wait_writable(reply)
                budget = call.remaining
            if not reply.done():  # the deadline has passed, or the session is lost
                only = len(calls) == 1
                sender.send(route, call.request, correlation_id, budget, only=only)
            body = await reply
        except asyncio.CancelledError:
            self._cancel(route, correlation_id)
            raise
        finally:
            timer.cancel()
            del calls[correlation_id]
        return result_of(body)

    async def stream(self, route: str, call: Call) -> AsyncGenerator[bytes, None]:
        """Send a call and yield the payload of each reply; see MessageBus.stream."""
        correlation_id = next(self._ids)
        budget = self._budget(call)
        sender = self._senders.by_route.get(route) or await self._senders.open(route, budget)
        stream = ReplyStream(correlation_id, route, sender, self._controls)
        self._pending.streams[correlation_id] = stream
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
            del self._pending.streams[correlation_id]
            if not stream.ended:
                self._cancel(route, correlation_id)

    async def broadcast(self, route: str, call: Call) -> list[bytes]:
        """Call every process that serves the route; see MessageBus.broadcast."""
        budget = self._budget(call)
        correlation_id = next(self._ids)
        _, replies = self._pending.broadcasts[correlation_id] = route, list[bytes]()
        request = with_budget(call.request, budget)
        control = Control(correlation_id=correlation_id, request=request)
        self._controls.send(owner(route), route, control)
        try:
            await asyncio.sleep(budget)  # the number of processes is unknown
        finally:
            del self._pending.broadcasts[correlation_id]
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

    def _on_returned(self, returned: Returned) -> None:
        """Take an unroutable message: a batch of calls, a probe or a call."""
        if route := single_route(returned.routing_key):
            if sender := self._senders.by_route.get(route):  # else its channel and calls are lost
                sender.resend_unbatched(route, returned.body, self._pending.calls)
        elif not returned.correlation_id:
            self._lost_calls.on_returned(returned.routing_key)
        else:
            error = self._senders.no_route(returned.routing_key)
            self._pending.fail(returned.correlation_id, error)

    def _probe(self, id_: str, route: str, waiting_ms: int) -> None:
        if self._transport.writable:
            self._controls.probe(id_, route, waiting_ms)

    def _on_channel_lost(self, channel: MessageChannel) -> None:
        self._senders.forget(channel)
        self._pending.fail_lost(channel)

    def mark_lost(self) -> None:
        """Fail every pending call and stream, and probe nothing more."""
        self._lost_calls.stop()
        self._pending.fail_lost()
