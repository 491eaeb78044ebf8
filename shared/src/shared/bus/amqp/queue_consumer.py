"""A queue that is consumed."""

import asyncio
from functools import partial
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractQueue

from shared.bus.amqp.broker_connection import Link
from shared.bus.amqp.broker_session import Session
from shared.bus.amqp.frames import Delivered
from shared.bus.amqp.message_channel import Lane

__all__ = ["Endpoint"]

_STOP_SECONDS: Final = 2.0
_FINISH_SECONDS: Final = 2.5


class Endpoint:
    """A queue and its consumer; begins anew on every session."""

    def __init__(self, queue_name: str, prefetch: int) -> None:
        self.queue_name = queue_name
        self.starting = asyncio.Lock()
        self._prefetch = prefetch
        self._session: Session | None = None
        self._running: dict[object, asyncio.Task[None]] = {}
        """What has begun, by what it is about."""

    @property
    def active(self) -> bool:
        """Whether it consumes at this moment."""
        return self._session is not None and not self._session.lost.is_set()

    async def start(self, session: Session) -> None:
        """Declare, bind and consume; raises BROKER_ERRORS."""
        self._loop = asyncio.get_running_loop()
        self._link = self._link_of(session)
        self._channel, self._lane = await self._link.channel(prefetch=self._prefetch)
        self._queue = await self._declare(self._channel)
        self._tag = await self._lane.consume(self._queue.name, partial(self._begin, self._lane))
        await self._bind()
        self._session = session

    async def stop(self) -> None:
        """Take no more messages, finish those that have begun, and leave; raises BROKER_ERRORS.

        What is not finished in time is cancelled; events are then delivered again.
        """
        try:
            if self.active:
                async with asyncio.timeout(_STOP_SECONDS):  # a broker that is blocked says nothing
                    await self._drain()
                    await self._queue.cancel(self._tag)
                    await self._hand_back()
        finally:
            self._turn_away()
            await self._finish_running()
        if self.active:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._lane.room()
                await self._close()

    async def _close(self) -> None:
        await self._link.close_channel(self._channel, self._lane)

    async def _finish_running(self) -> None:
        if self._running:
            _, late = await asyncio.wait(self._running.values(), timeout=_FINISH_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _link_of(self, session: Session) -> Link:
        raise NotImplementedError

    async def _declare(self, channel: AbstractChannel) -> AbstractQueue:
        raise NotImplementedError

    async def _bind(self) -> None:
        """Let messages come that wait for a consumer to be there."""

    def _begin(self, lane: Lane, message: Delivered) -> None:
        """Take a message; on the lane it came by, which may not be the present one any more."""
        self._running[message] = self._loop.create_task(self._handle(lane, message))

    async def _handle(self, lane: Lane, message: Delivered) -> None:
        """Deal with a message, and take it from what is running."""
        raise NotImplementedError

    async def _drain(self) -> None:
        """Do what has to be done while messages still come."""

    async def _hand_back(self) -> None:
        """Find out who takes what has not begun."""

    def _turn_away(self) -> None:
        """Begin nothing more."""
