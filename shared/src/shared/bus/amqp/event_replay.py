"""Read events again from the stream of all events."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog

from shared.bus.amqp.broker_connection import BROKER_ERRORS, broker_errors
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.frames import Delivered
from shared.bus.amqp.queue_consumer import event_owner
from shared.bus.amqp.topology import EVENT_STREAM

__all__ = ["replay"]

_log = structlog.get_logger()
_PREFETCH: Final = 64
_IDLE_SECONDS: Final = 3.0
"""A replay ends once the stream has had no event for so long,"""
_MAX_SECONDS: Final = 120.0
"""or at the latest after this time."""


async def replay(
    session: BrokerSession,
    queue: str,
    types: Sequence[str],
    handle: Callable[[Delivered], Awaitable[None]],
    seconds: float,
) -> None:
    """Pass the events of `types` of the last `seconds` to `handle`, one after the other.

    A missing stream is a loss of events, which is logged.
    """
    arrived: asyncio.Queue[Delivered | None] = asyncio.Queue()

    def on_lost(*_reason: Any) -> None:
        arrived.put_nowait(None)

    count, connection = 0, session.consuming
    try:
        with broker_errors():
            channel = await connection.channel(prefetch=_PREFETCH, on_lost=on_lost)
            try:
                arguments = {"x-stream-offset": f"{math.ceil(seconds)}s"}
                await channel.consume([EVENT_STREAM], arrived.put_nowait, arguments=arguments)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_MAX_SECONDS):
                        while message := await _next(arrived):
                            key, sender = message.routing_key, message.user_id
                            if key in types and sender == event_owner(message):
                                await handle(message)
                                count += 1
                            channel.ack(message.tag)
            finally:
                if not channel.closed:
                    # no message may arrive while the channel closes
                    await channel.stop_consuming([EVENT_STREAM])
                    await connection.close_channel(channel)
    except BROKER_ERRORS as error:
        _log.error("consumer.lost_events", queue=queue, error=repr(error)[:200])
        return
    _log.warning("consumer.replayed", queue=queue, events=count)


async def _next(arrived: asyncio.Queue[Delivered | None]) -> Delivered | None:
    """Return the next message, None after a loss of the channel; TimeoutError if there is none."""
    async with asyncio.timeout(_IDLE_SECONDS):
        return await arrived.get()
