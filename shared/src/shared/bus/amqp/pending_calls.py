"""The calls of a process that have not ended, and their ids."""

import itertools
import os
from collections.abc import Iterator
from typing import Final

from shared.bus.amqp.call_sender import PendingCall
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.reply_stream import ReplyStream
from shared.bus.call_errors import connection_lost
from shared.errors import ServiceError

__all__ = ["PendingCalls", "correlation_ids"]

_IDS_AT_ONCE: Final = 256
"""Correlation ids per read of the system's random numbers."""


def correlation_ids() -> Iterator[str]:
    """Yield new correlation ids of 128 random bits, as 32 hex digits each.

    Any process that may publish to the reply queue could reply to a call whose id it can guess: the
    ids that one server sees must not reveal the ids of other calls.
    """
    return itertools.chain.from_iterable(iter(_random_ids, None))


def _random_ids() -> list[str]:
    digits = os.urandom(16 * _IDS_AT_ONCE).hex()
    return [digits[at : at + 32] for at in range(0, len(digits), 32)]


class PendingCalls:
    """The calls, streams and broadcasts that have not ended, by correlation id."""

    __slots__ = ("broadcasts", "calls", "streams")

    def __init__(self) -> None:
        self.calls: dict[str, PendingCall] = {}
        """In the order of sending."""
        self.streams: dict[str, ReplyStream] = {}
        self.broadcasts: dict[str, tuple[str, list[bytes]]] = {}
        """Route and replies of each broadcast."""

    def sent_before(self, moment: float) -> Iterator[tuple[str, str, float]]:
        """Yield correlation id, route and time of each call and stream sent before `moment`."""
        for correlation_id, (_, route, _, sent, _) in self.calls.items():
            if sent > moment:
                break
            yield correlation_id, route, sent
        for correlation_id, stream in self.streams.items():
            if stream.sent <= moment:
                yield correlation_id, stream.route, stream.sent

    def fail(self, correlation_id: str, error: ServiceError) -> None:
        """End a call or a stream with an error, unless it has ended."""
        if (pending := self.calls.get(correlation_id)) is not None:
            if not pending[0].done():
                pending[0].set_exception(error)
        elif (stream := self.streams.get(correlation_id)) is not None:
            stream.put(error)

    def fail_lost(self, channel: MessageChannel | None = None) -> None:
        """End the calls and streams of a lost channel, or all: some may have been delivered."""
        for reply, _, _, _, sender in self.calls.values():
            if channel in (None, sender.channel) and not reply.done():
                reply.set_exception(connection_lost())
        for stream in self.streams.values():
            if channel in (None, stream.sender.channel):
                stream.put(connection_lost())
