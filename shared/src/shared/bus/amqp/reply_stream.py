"""The replies of a streaming call, at its caller."""

import asyncio
import time
from typing import Final

from postbus import reasons
from postbus.bus.v1 import Control, Outcome
from shared.bus.amqp.call_sender import CallSender
from shared.bus.amqp.control_sender import ControlSender
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.topology import owner
from shared.bus.call_errors import unavailable
from shared.bus.message_bus import CREDIT
from shared.errors import ServiceError

__all__ = ["ReplyStream"]

_MAX_WAITING: Final = 32 * 2**20
"""Bytes of the replies that wait in a stream."""


class ReplyStream:
    """The replies of a streaming call; grants credit as they are consumed."""

    def __init__(
        self, correlation_id: str, route: str, sender: CallSender, controls: ControlSender
    ) -> None:
        self.route = route
        self.sent = time.monotonic()
        self.ended = False
        self.sender = sender
        self.worker: str | None = None
        """The queue of controls of the worker that has sent the first reply."""
        self._controls = controls
        self._service = owner(route)
        self._correlation_id = correlation_id
        self._replies: asyncio.Queue[Delivered | ServiceError] = asyncio.Queue()
        self._consumed = 0
        self._bytes = 0
        """Bytes of the replies that wait."""
        self._broken = False

    def put(self, reply: Delivered | ServiceError) -> None:
        """Add a reply, or the error that ends the stream. It breaks if more replies wait than the
        credit, or more than 32 MiB.
        """
        if isinstance(reply, ServiceError):
            self._replies.put_nowait(reply)
        elif self._replies.qsize() < CREDIT and self._bytes + len(reply.body) <= _MAX_WAITING:
            self._bytes += len(reply.body)
            self._replies.put_nowait(reply)
        elif not self._broken:
            self._broken = True
            text = "The worker sent more replies than the caller allowed."
            self._replies.put_nowait(unavailable(reasons.STREAM_BROKEN, text, Outcome.UNKNOWN))

    async def next(self) -> bytes:
        """Wait for the next reply and return it; raise the error that ends the stream."""
        reply = await self._replies.get()
        if isinstance(reply, ServiceError):
            raise reply
        self._bytes -= len(reply.body)
        self._consumed += 1
        if self._consumed >= CREDIT // 2 and reply.reply_to:
            credit = Control(correlation_id=self._correlation_id, credit=self._consumed)
            self._controls.send(self._service, reply.reply_to, credit)
            self._consumed = 0
        return reply.body
