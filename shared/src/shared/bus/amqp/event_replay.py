"""Read events again from the stream of all events."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_errors import BROKER_ERRORS, broker_errors
from shared.bus.amqp.queue_consumer import is_from_owner, log_forged_event
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.topology import EVENT_STREAM
from shared.limited_log import LimitedLog
from shared.security_log import SecurityLog

__all__ = ["LOST", "replay"]

_PREFETCH: Final = 64
_IDLE_SECONDS: Final = 3.0
"""A replay ends once the stream has had no event for so long,"""
_MAX_SECONDS: Final = 120.0
"""or at the latest after this time."""
_MAX_ERROR: Final = 200
"""Characters of an error in the log."""

LOST: Final = "consumer.lost_events"
"""The log event of a consumer that may never handle events."""


async def replay(
    connection: BrokerConnection,
    queue: str,
    types: Sequence[str],
    handle: Callable[[Delivered], Awaitable[None]],
    *,
    seconds: float,
    log: LimitedLog,
    security_log: SecurityLog,
) -> bool:
    """Pass the events of `types` of the last `seconds` to `handle`, one after the other.

    A missing stream is a loss of events, which is logged. Returns False if the connection was lost
    before the end: the events must be read again.
    """
    arrived: asyncio.Queue[Delivered | None] = asyncio.Queue()

    def on_lost(*_reason: Any) -> None:
        arrived.put_nowait(None)

    count, error = 0, ""
    try:
        with broker_errors():
            channel = await connection.channel(prefetch=_PREFETCH, on_lost=on_lost)
            try:
                arguments = {"x-stream-offset": f"{math.ceil(seconds)}s"}
                await channel.consume([EVENT_STREAM], arrived.put_nowait, arguments=arguments)
                try:
                    async with asyncio.timeout(_MAX_SECONDS):
                        while message := await _next(arrived):
                            key = message.routing_key
                            if key in types and not is_from_owner(message):
                                log_forged_event(security_log, message)
                            elif key in types:
                                await handle(message)
                                count += 1
                            channel.ack(message.tag)
                except TimeoutError:
                    log.write(logging.WARNING, "consumer.replay_timed_out", queue=queue)
                if channel.closed:
                    error = "the stream was lost"
            finally:
                if not channel.closed:
                    # no message may arrive while the channel closes
                    await channel.stop_consuming([EVENT_STREAM])
                    await connection.close_channel(channel)
    except BROKER_ERRORS as raised:
        error = repr(raised)[:_MAX_ERROR]
    if error and connection.lost.is_set():
        return False
    if error:
        log.write(logging.ERROR, LOST, queue=queue, reason=error)
    else:
        log.write(logging.WARNING, "consumer.replayed", queue=queue, events=count)
    return True


async def _next(arrived: "asyncio.Queue[Delivered | None]") -> Delivered | None:
    """Return the next message; None at the end of the stream, and once the channel is lost."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_IDLE_SECONDS):
            return await arrived.get()
    return None
