"""The queue of a worker's calls, and their answers."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Final

import structlog
from aio_pika.abc import AbstractChannel, AbstractQueue
from aiormq import spec

from postbus.bus.v1 import Control, Outcome
from shared.bus.amqp import frames
from shared.bus.amqp.batches import Batch, batch_route, fits, single_route, unpack
from shared.bus.amqp.broker_connection import Link
from shared.bus.amqp.broker_session import CONTENT_TYPE, Session
from shared.bus.amqp.frames import Delivered
from shared.bus.amqp.message_channel import Lane
from shared.bus.amqp.queue_consumer import Endpoint
from shared.bus.amqp.topology import CONTROL_EXCHANGE, RPC_EXCHANGE, consumers
from shared.bus.concurrency_limit import ConcurrencyLimit
from shared.bus.envelope import error_reply, read_request, unavailable
from shared.bus.message_bus import CREDIT, RpcHandler
from shared.errors import Code, ServiceError
from shared.wire import decode

__all__ = ["RpcServer"]

_log = structlog.get_logger()

_ORPHAN_EXPIRES_MS: Final = 1000
"""A broker that restarts keeps the queue of calls; without a worker it goes after this time."""
_DRAIN_SECONDS: Final = 1.0
"""Longest time for which the last server of a queue waits until all calls have begun."""
_MAX_STALL_SECONDS: Final = 30.0
_MAX_CALLS: Final = 1024
"""Calls that a worker has at once, begun or not, before it refuses more."""
_RPC_PREFETCH: Final = 2 * _MAX_CALLS
"""More than it ever has: so handlers that wait for calls to their own worker do not block it."""
_LONGEST_MS: Final = 60_000
_MAX_CANCELS: Final = 1024
_MAX_BYTES: Final = 64 * 2**20
"""Bytes of the calls that a worker has at once, before it refuses more."""
_MAX_CONTROL: Final = 64 * 2**10
"""Bytes of a control; the requests in them are small."""
_MAX_ID: Final = 255
"""Bytes of what AMQP names a call by (4.2.5.3)."""


class RpcServer(Endpoint):
    """Answers the calls of a queue that is bound to each of its routes.

    The queue goes with its last consumer, so that callers are told at once that nobody serves.
    """

    def __init__(
        self, queue: str, routes: Sequence[str], handler: RpcHandler, concurrency: int
    ) -> None:
        super().__init__(queue, prefetch=_RPC_PREFETCH)
        self._routes = routes
        self._keys = [*routes, *map(batch_route, routes)]
        self._handler = handler
        self._slots = ConcurrencyLimit(concurrency)
        self._calls: dict[_Key, Delivered] = {}
        self._flows: dict[_Key, _Flow] = {}
        self._replies: dict[tuple[Lane, str], Batch] = {}
        """Of this moment, by where they go."""
        self._cancelled: OrderedDict[_Key, None] = OrderedDict()
        self._bytes = 0
        self._alone = False
        """Whether the queue has gone with this server, the last one."""

    def _link_of(self, session: Session) -> Link:
        """Calls and replies share a connection: an ack comes after the reply that it stands for."""
        return session.publishing

    async def _declare(self, channel: AbstractChannel) -> AbstractQueue:
        queue = await channel.declare_queue(
            self.queue_name,
            durable=True,
            auto_delete=True,
            arguments={"x-expires": _ORPHAN_EXPIRES_MS},
        )
        self._controls = await self._link.channel()
        control_channel, control_lane = self._controls
        controls = await control_channel.declare_queue(exclusive=True, auto_delete=True)
        for route in self._routes:
            await controls.bind(CONTROL_EXCHANGE, route)
        await control_lane.consume(controls.name, self._on_control, no_ack=True)
        self._header = frames.Header(CONTENT_TYPE, controls.name)
        return queue

    async def _bind(self) -> None:
        """After consuming: a server that drains unbinds what seems to be its own alone."""
        for key in self._keys:
            await self._queue.bind(RPC_EXCHANGE, key)

    def _begin(self, lane: Lane, message: Delivered) -> None:
        if route := single_route(message.routing_key):
            self._begin_batch(lane, route, message)
        else:
            self._begin_call(lane, message)

    def _begin_batch(self, lane: Lane, route: str, message: Delivered) -> None:
        try:
            calls = unpack(message.body)
        except ServiceError as error:  # from whom, and about what, is not known
            _log.warning("bus.bad_batch", route=route, reason=error.reason)
            calls = []
        open_ = _Open(message.tag, len(calls))
        if not calls:
            lane.ack(message.tag)
        for correlation_id, request in calls:
            self._begin_call(
                lane, _Batched(open_, route, correlation_id, message.reply_to, request)
            )

    def _begin_call(self, lane: Lane, message: Delivered) -> None:
        if message.oversized:
            self._refuse(lane, message, "REQUEST_TOO_LARGE", "The request is too large.")
        elif len(self._running) >= _MAX_CALLS or self._bytes > _MAX_BYTES:
            self._refuse(lane, message, "OVERLOADED", "The service has too much to do.")
        else:
            self._bytes += len(message.body)
            super()._begin(lane, message)

    def _refuse(self, lane: Lane, message: Delivered, reason: str, text: str) -> None:
        error = ServiceError(
            Code.RESOURCE_EXHAUSTED, reason, text, retry_after=1, outcome=Outcome.NO_EFFECT
        )
        self._reply(lane, message, error_reply(error))
        self._done(lane, message)

    def _done(self, lane: Lane, message: Delivered) -> None:
        """Acknowledge a call; calls of a batch when the last of them is done."""
        if type(message) is not _Batched:
            lane.ack(message.tag)
            return
        message.open.calls -= 1
        if not message.open.calls:
            lane.ack(message.open.tag)

    async def _handle(self, lane: Lane, message: Delivered) -> None:
        key = (message.reply_to, message.correlation_id)
        begun = False
        try:
            if key in self._cancelled:
                self._done(lane, message)
                return
            self._calls[key] = message
            begun = self._slots.try_acquire()
            if not begun:
                await self._slots.acquire()
                begun = True
            answer = self._handler(message.routing_key, message.body)
            if isinstance(answer, AsyncGenerator):
                await self._stream(lane, message, key, answer)
            else:
                self._reply(lane, message, await answer)
            self._done(lane, message)
            if len(self._running) == 1:
                lane.flush()
        except asyncio.CancelledError:
            self._end_cancelled(lane, message, key, begun=begun)
        except Exception:  # noqa: BLE001  # the edge: no message may stay in hand
            _log.exception("bus.call_failed", route=message.routing_key)
            self._done(lane, message)
        finally:
            if self._calls.get(key) is message:
                del self._calls[key]
            del self._running[message]
            self._bytes -= len(message.body)
            if begun:
                self._slots.release()
        if not lane.has_room:
            await lane.room()

    def _end_cancelled(self, lane: Lane, message: Delivered, key: "_Key", *, begun: bool) -> None:
        """By the caller, who wants no answer; or by the end of this server."""
        if key in self._cancelled:
            self._done(lane, message)
        elif begun:
            late = unavailable("SERVER_STOPPED", "The service has stopped.", Outcome.UNKNOWN)
            self._reply(lane, message, error_reply(late))
            self._done(lane, message)
        elif self._alone:
            stopped = unavailable("SERVER_STOPPED", "The service has stopped.")
            self._reply(lane, message, error_reply(stopped))
            self._done(lane, message)
        elif type(message) is _Batched:
            self._send_back(lane, message)
            self._done(lane, message)
        else:
            lane.reject(message.tag, requeue=True)

    def _send_back(self, lane: Lane, message: Delivered) -> None:
        """Give a call of a batch to another server."""
        with suppress(ServiceError):
            left = read_request(message.body).deadline_unix_ms - int(time.time() * 1000)
            header = frames.properties(
                CONTENT_TYPE,
                correlation_id=message.correlation_id,
                reply_to=message.reply_to,
                expiration_ms=min(max(left, 1), _LONGEST_MS),
            )
            lane.publish(RPC_EXCHANGE, message.routing_key, header, message.body)

    def _reply(self, lane: Lane, message: Delivered, reply: bytes) -> None:
        if not message.reply_to:
            return
        if type(message) is not _Batched or not fits(reply):
            lane.publish("", message.reply_to, self._header(message.correlation_id), reply)
            return
        waiting = self._replies.get((lane, message.reply_to))
        if waiting is None:
            if not self._replies:
                lane.before_sending(self._send_replies)
            waiting = self._replies[lane, message.reply_to] = Batch()
        if waiting.add(message.correlation_id, reply):
            del self._replies[lane, message.reply_to]
            lane.publish("", message.reply_to, self._header(""), waiting.pack())

    def _send_replies(self) -> None:
        replies, self._replies = self._replies, {}
        for (lane, reply_to), batch in replies.items():
            lane.publish("", reply_to, self._header(""), batch.pack())

    async def _stream(
        self, lane: Lane, message: Delivered, key: "_Key", replies: AsyncGenerator[bytes, None]
    ) -> None:
        """Send what the caller has credit for, until the end or until it cancels."""
        self._flows[key] = flow = _Flow()
        try:
            async with aclosing(replies):
                async for reply in replies:
                    if not await flow.may_send():
                        return
                    self._reply(lane, message, reply)
        finally:
            if self._flows.get(key) is flow:
                del self._flows[key]

    def _on_control(self, message: Delivered) -> None:
        if len(message.body) > _MAX_CONTROL:
            return
        with suppress(ServiceError):  # any process that reaches the broker may send anything
            control = decode(Control, message.body)
            key = (control.reply_to, control.correlation_id)
            if any(len(each.encode()) > _MAX_ID for each in key):
                return
            if control.request:
                self._answer_control(message.routing_key, control)
            elif control.cancel:
                self._cancel(key)
            elif flow := self._flows.get(key):
                flow.give(control.credit)

    def _answer_control(self, route: str, control: Control) -> None:
        """Answer beside the queue, whatever waits in it; only what tells of the process itself."""
        if not route.startswith("postbus.bus.") or len(self._running) >= _MAX_CALLS:
            return
        answer = self._handler(route, control.request)
        if isinstance(answer, AsyncGenerator):
            return

        async def reply(lane: Lane = self._lane) -> None:
            try:
                header = self._header(control.correlation_id)
                lane.publish("", control.reply_to, header, await answer)
            finally:
                del self._running[answer]

        self._running[answer] = asyncio.create_task(reply())

    def _cancel(self, key: "_Key") -> None:
        """End a call; one that has not come yet is remembered, though not for ever."""
        self._cancelled[key] = None
        if len(self._cancelled) > _MAX_CANCELS:
            self._cancelled.popitem(last=False)
        if message := self._calls.get(key):
            self._running[message].cancel()

    async def _drain(self) -> None:
        """Answer what waits, if this is the last server: the queue will go, and its calls too."""
        state = await self._queue_state()
        if state.consumer_count != 1:
            return
        for key in self._keys:
            await self._queue.unbind(RPC_EXCHANGE, key)
        if (await self._queue_state()).consumer_count != 1:  # another has come meanwhile
            await self._bind()
            return
        # No timeout: aiormq closes the channel, which ends the session, if a declaration is
        # cancelled.
        end = self._loop.time() + _DRAIN_SECONDS
        while self._loop.time() < end:
            if not (await self._queue_state()).message_count and not self._slots.waiting:
                return
            await asyncio.sleep(0.02)

    async def _hand_back(self) -> None:
        """Another server; if there is none, the callers are told."""
        self._alone = await consumers(self._link, self.queue_name) is None

    def _turn_away(self) -> None:
        self._slots.cancel_waiters()

    async def _close(self) -> None:
        await super()._close()
        await self._link.close_channel(*self._controls)

    async def _queue_state(self) -> spec.Queue.DeclareOk:
        queue = await self._channel.declare_queue(self.queue_name, passive=True)
        return queue.declaration_result


_Key = tuple[str, str]
"""A call, by its reply-to and correlation id."""


class _Open:
    """A batch with calls that are not done."""

    __slots__ = ("calls", "tag")

    def __init__(self, tag: int, calls: int) -> None:
        self.tag = tag
        self.calls = calls


class _Batched(Delivered):
    """A call out of a batch."""

    __slots__ = ("open",)

    def __init__(
        self, open_: _Open, route: str, correlation_id: str, reply_to: str, request: bytes
    ) -> None:
        super().__init__(open_.tag, False, route, correlation_id, reply_to, b"", request)
        self.open = open_


class _Flow:
    """The credit of one stream."""

    def __init__(self) -> None:
        self._credit = CREDIT
        self._changed = asyncio.Event()

    def give(self, credit: int) -> None:
        """Take what the caller gives."""
        self._credit = min(self._credit + credit, CREDIT)
        self._changed.set()

    async def may_send(self) -> bool:
        """Wait for credit; False if the caller takes nothing for too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_MAX_STALL_SECONDS):
                while self._credit == 0:
                    self._changed.clear()
                    await self._changed.wait()
        if self._credit == 0:
            return False
        self._credit -= 1
        return True
