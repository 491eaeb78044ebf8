"""The calls that a server has received, each alone or in a batch."""

import asyncio
from typing import Final

from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.received_messages import Delivered

__all__ = [
    "MAX_CALLS",
    "BatchedCall",
    "CallKey",
    "HeldCalls",
    "ReceivedBatch",
    "acknowledge",
]

MAX_CALLS: Final = 1024
"""Calls that a server holds, running or waiting for a slot, before it refuses more."""

CallKey = tuple[str, str]
"""A call, by its reply-to and correlation id."""


class HeldCalls:
    """The calls that a server holds, running or waiting for a slot, over all its sessions."""

    __slots__ = ("by_key", "bytes", "running")

    def __init__(self, running: dict[object, asyncio.Task[None]]) -> None:
        self.by_key: dict[CallKey, Delivered] = {}
        self.bytes = 0
        """Bytes of their requests."""
        self.running = running
        """The tasks of the calls and of broadcasts."""

    def cancel(self, key: CallKey) -> None:
        """Cancel the task of a call."""
        if message := self.by_key.get(key):
            self.running[message].cancel()


class ReceivedBatch:
    """A batch of which calls are unfinished."""

    __slots__ = ("redelivered", "tag", "unfinished")

    def __init__(self, tag: int, unfinished: int, *, redelivered: bool) -> None:
        self.redelivered = redelivered
        self.tag = tag
        self.unfinished = unfinished


class BatchedCall(Delivered):
    """A call that arrived in a batch."""

    __slots__ = ("batch",)

    def __init__(
        self,
        batch: ReceivedBatch,
        route: str,
        correlation_id: str,
        message: Delivered,
        request: bytes,
    ) -> None:
        super().__init__(
            batch.tag,
            route,
            correlation_id,
            message.reply_to,
            message.encoded_headers,
            request,
            message.user_id,
        )
        self.redelivered = batch.redelivered
        self.batch = batch


def acknowledge(channel: MessageChannel, call: Delivered) -> None:
    """Acknowledge a finished call; a batch once all its calls have finished."""
    if type(call) is not BatchedCall:
        channel.ack(call.tag)
        return
    call.batch.unfinished -= 1
    if not call.batch.unfinished:
        channel.ack(call.tag)
