"""Followers of a stream: recent events first, then new ones."""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

import structlog
from aio_pika import Message

from shared.bus.amqp.broker_connection import BROKER_ERRORS, broker_errors
from shared.bus.amqp.broker_session import Session
from shared.bus.amqp.frames import Delivered
from shared.bus.amqp.message_channel import Lane
from shared.bus.amqp.queue_consumer import Endpoint
from shared.bus.amqp.topology import Queue, declare
from shared.bus.message_bus import EventHandler

__all__ = ["StreamFollower"]

_log = structlog.get_logger()
_PREFETCH: Final = 64
"""Events that are handled in one go: with about 25 us each, the event loop stays free."""
_START_SECONDS: Final = 1.0
"""Longest wait of a new session for the past events; its calls then begin without them."""
_REPLAY_SECONDS: Final = 60.0
"""Longest time to read the past events; reading is then begun again."""
_RETRY_SECONDS: Final = 2.0
"""Between two attempts to read."""
_CLOSE_SECONDS: Final = 1.0
"""For the broker to close the channel."""
_MAX_ERROR: Final = 500
"""Characters of an error in the log."""

_Arrived = asyncio.Queue[Delivered | None]
"""Messages; None once the channel is lost."""


class StreamFollower(Endpoint):
    """Hands the events of a stream to a handler, one after the other; see MessageBus.follow.

    A consumer can't detect the end of a stream, so the follower publishes a mark: once it reads its
    own mark, it has read all events that the broker had confirmed before. The stream has a
    channel of its own: while the stream is unavailable, the session serves all other calls.
    """

    def __init__(
        self,
        stream: Queue,
        handler: EventHandler,
        seconds: float,
        replay_seconds: float = _REPLAY_SECONDS,
    ) -> None:
        super().__init__(stream.name, _PREFETCH)
        self.complete = False
        self._stream = stream
        self._handler = handler
        # Counted back by the broker's own clock; a time would compare it with ours.
        self._offset = f"{math.ceil(seconds)}s"
        self._replay_seconds = replay_seconds
        self._completed = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def start(self, session: Session) -> None:
        """Read the stream again in each session. Never fails: reading is tried again."""
        await self.stop()
        self._completed.clear()
        self._session = session
        self._reading = asyncio.create_task(self._read(session))
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                await self._completed.wait()
        self.complete = self._completed.is_set()

    async def stop(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self, session: Session) -> None:
        while True:
            error = "the channel was closed"
            try:
                with broker_errors():
                    await self._read_once(session)
            except BROKER_ERRORS as raised:
                error = repr(raised)[:_MAX_ERROR]
            if session.lost.is_set():  # the next session reads again before it serves a call
                return
            self.complete = False
            _log.warning("stream.not_read", stream=self.queue_name, error=error)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _read_once(self, session: Session) -> None:
        """Read until the channel is lost; raises BROKER_ERRORS."""
        link, arrived = session.consuming, _Arrived()

        def lost(*_reason: Any) -> None:
            arrived.put_nowait(None)

        async with asyncio.timeout(self._replay_seconds) as limit:
            await declare(link, self._stream)
            channel, lane = await link.channel(prefetch=_PREFETCH, on_lost=lost)
            queue = await channel.get_queue(self.queue_name, ensure=False)
            tag = ""
            try:
                arguments = {"x-stream-offset": self._offset}
                tag = await lane.consume(self.queue_name, arrived.put_nowait, arguments=arguments)
                mark = await self._mark(session)

                def complete() -> None:
                    limit.reschedule(None)
                    self.complete = True
                    self._completed.set()

                await self._handle_all(lane, arrived, mark, complete)
            finally:
                if not session.lost.is_set():
                    with suppress(*BROKER_ERRORS):
                        async with asyncio.timeout(_CLOSE_SECONDS):
                            if tag:  # nothing may come while the channel is closed
                                await queue.cancel(tag)
                            await link.close_channel(channel, lane)

    async def _mark(self, session: Session) -> str:
        """Publish a mark to the stream alone; return its correlation id."""
        mark = uuid4().hex
        async with session.publishing.scratch() as channel:
            await channel.default_exchange.publish(
                Message(b"", correlation_id=mark), self.queue_name
            )
        return mark

    async def _handle_all(
        self, lane: Lane, arrived: _Arrived, mark: str, complete: Callable[[], None]
    ) -> None:
        while (message := await arrived.get()) is not None:
            if message.correlation_id == mark:
                complete()
            elif message.routing_key in self._stream.keys and not message.oversized:
                await self._handle_event(message)  # else a mark of another follower
            lane.ack(message.tag)

    async def _handle_event(self, message: Delivered) -> None:
        try:
            await self._handler(message.body)
        except Exception:  # noqa: BLE001  # the edge: one bad event must not hide the next
            _log.exception("event.rejected", stream=self.queue_name)
