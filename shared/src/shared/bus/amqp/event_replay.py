"""Reads events again from the stream of all events."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from shared import tasks
from shared.bus.amqp.broker_errors import BROKER_ERRORS, broker_errors
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.event_senders import is_from_owner, log_forged_event
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.stream_channel import Arrived, open_stream
from shared.bus.amqp.topology import EVENT_STREAM
from shared.limited_log import LimitedLog
from shared.outbox.inbox import KEEP_SECONDS

__all__ = ["EventReplay"]

_IDLE_SECONDS: Final = 3.0
"""A replay ends once the stream has had no event for so long,"""
_MAX_SECONDS: Final = 120.0
"""or at the latest after this time."""
_MARGIN_SECONDS: Final = 60.0
"""Events that were published earlier than a good check by more are not read again.

A handler has 30 seconds, so an event that was unprocessed at the check is younger.
"""
_OLDEST_SECONDS: Final = float(KEEP_SECONDS)
"""The inbox recognises an event that was handled before for so long."""
_MAX_ERROR: Final = 200
"""Characters of an error in the log."""
_LOST: Final = "consumer.lost_events"
"""The log event of a consumer that may never handle events."""


class EventReplay:
    """Passes the events of `types` that a durable queue may have missed to `handle`.

    The inbox ignores those that were handled before.
    """

    def __init__(
        self,
        queue: str,
        types: Sequence[str],
        handle: Callable[[Delivered], Awaitable[None]],
        log: LimitedLog,
    ) -> None:
        self.good_at = time.monotonic()
        """Time of the last check at which nothing was missing and no event had to wait."""
        self.unread = False
        """Whether a replay has begun and has not ended."""
        self._queue = queue
        self._types = types
        self._handle = handle
        self._log = log
        self._reading: asyncio.Task[None] | None = None

    def begin(self, session: BrokerSession) -> None:
        """Read the events since the last good check, in a task, instead of an earlier replay."""
        missed = time.monotonic() - self.good_at + _MARGIN_SECONDS
        seconds = min(missed, _OLDEST_SECONDS)
        if missed > seconds:
            reason = f"events of more than {round(seconds)} seconds ago are not read again"
            self._log.write(logging.ERROR, _LOST, queue=self._queue, reason=reason)
        self._log.write(
            logging.WARNING, "consumer.replays", queue=self._queue, seconds=round(seconds)
        )
        if self._reading is not None:
            self._reading.cancel()
        self.unread = True
        self._reading = asyncio.create_task(self._replay(session, seconds))

    async def stop(self) -> None:
        """End the replay."""
        if self._reading is not None:
            await tasks.end(self._reading)

    async def _replay(self, session: BrokerSession, seconds: float) -> None:
        """Read the events of the last `seconds`. If they are not in the stream, log their loss.

        They stay unread if the connection is lost before the end.
        """
        count, error = 0, ""
        try:
            with broker_errors():
                count = await self._read(session, seconds)
        except BROKER_ERRORS as raised:
            error = repr(raised)[:_MAX_ERROR]
        if error and session.consuming.lost.is_set():
            return
        if error:
            self._log.write(logging.ERROR, _LOST, queue=self._queue, reason=error)
        else:
            self._log.write(logging.WARNING, "consumer.replayed", queue=self._queue, events=count)
        self.unread = False

    async def _read(self, session: BrokerSession, seconds: float) -> int:
        """Handle the events of the last `seconds`; return their number; raises BROKER_ERRORS."""
        async with open_stream(session.consuming, EVENT_STREAM, seconds) as (channel, arrived):
            count = await self._handle_all(session, channel, arrived)
            if channel.closed:
                raise ConnectionError("the stream was lost")
            return count

    async def _handle_all(
        self, session: BrokerSession, channel: MessageChannel, arrived: Arrived
    ) -> int:
        """Handle one event after the other until the end of the stream; return their number."""
        count = 0
        try:
            async with asyncio.timeout(_MAX_SECONDS):
                while message := await _next(arrived):
                    if message.routing_key in self._types:
                        if is_from_owner(message):
                            await self._handle(message)
                            count += 1
                        else:
                            log_forged_event(session.security_log, message)
                    channel.ack(message.tag)
        except TimeoutError:
            self._log.write(logging.WARNING, "consumer.replay_timed_out", queue=self._queue)
        return count


async def _next(arrived: Arrived) -> Delivered | None:
    """Return the next message; None at the end of the stream, and once the channel is lost."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_IDLE_SECONDS):
            return await arrived.get()
    return None
