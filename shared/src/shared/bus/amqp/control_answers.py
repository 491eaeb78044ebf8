"""Answers broadcasts, and the probes of callers about calls without a reply; see `lost_calls`."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Mapping

from postbus.bus.v1 import Control, ProbeAnswer
from shared.bus.amqp.message_properties import Header
from shared.bus.amqp.received_calls import MAX_CALLS, HeldCalls
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.reply_sender import ReplyChannels
from shared.bus.message_bus import RpcHandler
from shared.wire import encode

__all__ = ["BroadcastAnswers", "ProbeAnswers"]


class BroadcastAnswers:
    """Answers broadcasts of methods of postbus.bus, without waiting for a slot."""

    def __init__(
        self, handler: RpcHandler, held: HeldCalls, replies: ReplyChannels, header: Header
    ) -> None:
        self._handler = handler
        self._running = held.running
        self._replies = replies
        self._header = header

    def answer(self, message: Delivered, control: Control, caller: str) -> None:
        """Execute a method in a task, and reply to `caller`; ignore a call that may not be made."""
        route = message.routing_key
        if not route.startswith("postbus.bus.") or len(self._running) >= MAX_CALLS:
            return
        handling = self._handler(route, control.request, caller)
        if isinstance(handling, AsyncGenerator):
            return
        message.reply_to = control.reply_to

        async def reply() -> None:
            try:
                body = await handling
                if replies := await self._replies.open(message):
                    header = self._header(control.correlation_id)
                    replies.publish(replies.exchange, control.reply_to, header, body)
            finally:
                del self._running[handling]

        self._running[handling] = asyncio.get_running_loop().create_task(reply())


class ProbeAnswers:
    """Answers probes with the age of a queue that this process has created, and the calls it holds.

    `created` is the time of the creation by route.
    """

    def __init__(
        self,
        created: Mapping[str, float],
        held: HeldCalls,
        replies: ReplyChannels,
        header: Header,
    ) -> None:
        self._created = created
        self._held = held
        self._replies = replies
        self._header = header
        self._answering: dict[str, asyncio.Task[None]] = {}
        """By the user id of the caller: one answer at a time waits for its channel."""

    def answer(self, message: Delivered, probe: Control) -> None:
        """Answer a probe if this process holds calls of its caller, or has a younger queue.

        No answer means that nothing has changed. The answer is sent in a task.
        """
        route, caller = message.routing_key, message.user_id
        held = [
            id_
            for (reply_to, id_), call in self._held.by_key.items()
            if reply_to == probe.reply_to and call.routing_key == route
        ]
        age = (time.monotonic() - self._created.get(route, 0.0)) * 1000
        young = age < probe.waiting_ms
        if not (held or young) or caller in self._answering:
            return
        answer = ProbeAnswer(queue_age_ms=math.ceil(age) if young else 0, held=held)
        task = asyncio.get_running_loop().create_task(self._send(message, probe, encode(answer)))
        self._answering[caller] = task
        task.add_done_callback(lambda _: self._answering.pop(caller))

    async def _send(self, message: Delivered, probe: Control, answer: bytes) -> None:
        message.reply_to = probe.reply_to
        if replies := await self._replies.open(message):
            header = self._header(probe.correlation_id)
            replies.publish(replies.exchange, probe.reply_to, header, answer)
