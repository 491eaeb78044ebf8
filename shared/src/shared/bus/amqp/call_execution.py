"""Executes the calls of a server, and settles them: each gets its replies and is acknowledged."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from postbus import reasons
from postbus.bus.v1 import Outcome
from shared.bus.amqp.control_receiver import ControlReceiver
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.method_queues import MethodQueues
from shared.bus.amqp.received_calls import CallKey, HeldCalls, acknowledge
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.reply_sender import ReplyChannels, ReplySender
from shared.bus.call import spend_budget
from shared.bus.call_errors import unavailable
from shared.bus.concurrency_limit import ConcurrencyLimit
from shared.bus.message_bus import RpcHandler
from shared.bus.reply import error_reply
from shared.errors import deadline_exceeded
from shared.limited_log import LimitedLog

__all__ = ["CallExecution"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CallExecution:
    """Executes calls by `handler` in one session; each one needs a slot of `limit`."""

    handler: RpcHandler
    limit: ConcurrencyLimit
    held: HeldCalls
    queues: MethodQueues
    replies: ReplyChannels
    sender: ReplySender
    controls: ControlReceiver
    log: LimitedLog
    deleted: set[str] = field(default_factory=set)
    """Routes whose queue was deleted when the server stopped: no other server gets their calls."""

    async def execute(self, channel: MessageChannel, message: Delivered) -> None:
        """Execute a call that is held, and settle it. `channel` has delivered it."""
        key = (message.reply_to, message.correlation_id)
        started = settled = False
        replies = None if message.encoded_headers else self.replies.by_user.get(message.user_id)
        request, arrived = message.body, 0.0
        try:
            if replies is None or replies.closed or not message.reply_to.startswith(replies.prefix):
                replies = await self.replies.open(message)
            if replies is None or key in self.controls.cancelled:
                acknowledge(channel, message)
                return
            self.held.by_key[key] = message
            started = self.limit.try_acquire()
            if not started:
                arrived = time.monotonic()
                await self.limit.acquire()
                started = True
                spent = spend_budget(request, time.monotonic() - arrived)
                if spent is None:
                    self.sender.send(replies, message, _expired())
                    acknowledge(channel, message)
                    settled = True
                    return
                request = spent
            handling = self.handler(message.routing_key, request, replies.service)
            if isinstance(handling, AsyncGenerator):
                await self._stream(replies, message, key, handling)
            else:
                self.sender.send(replies, message, await handling)
            acknowledge(channel, message)
            settled = True
            if len(self.held.running) == 1:
                channel.transport.flush()
            if not channel.transport.writable:  # the slot stays taken while replies pile up
                await channel.transport.wait_writable()
        except asyncio.CancelledError:
            if not settled:
                waited = time.monotonic() - arrived if arrived else 0.0
                self._end_cancelled(channel, replies, message, waited, started=started)
        except Exception as error:  # noqa: BLE001  # every call must be settled
            self.log.write(
                logging.ERROR, "bus.call_failed", route=message.routing_key, exc_info=error
            )
            acknowledge(channel, message)
        finally:
            if self.held.by_key.get(key) is message:
                del self.held.by_key[key]
            del self.held.running[message]
            self.held.bytes -= len(message.body)
            if started:
                self.limit.release()

    async def _stream(
        self,
        channel: MessageChannel,
        message: Delivered,
        key: CallKey,
        replies: AsyncGenerator[bytes, None],
    ) -> None:
        """Send replies as the caller grants credit, until the end or the caller stalls."""
        with self.controls.credit(key) as credit:
            async with aclosing(replies):
                async for reply in replies:
                    if not await credit.acquire():
                        return
                    self.sender.send(channel, message, reply)

    def _end_cancelled(
        self,
        channel: MessageChannel,
        replies: MessageChannel | None,
        message: Delivered,
        waited: float,
        *,
        started: bool,
    ) -> None:
        """Settle a call that its caller or the end of the server has cancelled."""
        if (message.reply_to, message.correlation_id) not in self.controls.cancelled:
            # the server stops: the caller needs a reply
            if started or message.routing_key in self.deleted:
                outcome = Outcome.UNKNOWN if started else Outcome.NO_EFFECT
                stopped = unavailable(reasons.SERVER_STOPPED, "The worker has stopped.", outcome)
                if replies is not None:
                    self.sender.send(replies, message, error_reply(stopped))
            elif request := spend_budget(message.body, waited):
                self.queues.hand_on(channel, message, request)
            elif replies is not None:
                self.sender.send(replies, message, _expired())
        acknowledge(channel, message)


def _expired() -> bytes:
    """Return the encoded reply to a call that was not started within its budget."""
    return error_reply(deadline_exceeded(Outcome.NO_EFFECT))
