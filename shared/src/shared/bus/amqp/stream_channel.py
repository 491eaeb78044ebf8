"""Consumes a RabbitMQ stream on a channel of its own."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_errors import BROKER_ERRORS
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.received_messages import Delivered

__all__ = ["Arrived", "open_stream"]

_PREFETCH: Final = 64
"""Events that are handled in a row: at about 25 us each, they hardly delay the event loop."""
_CLOSE_SECONDS: Final = 1.0
"""Longest wait for the broker to close the channel."""

Arrived = asyncio.Queue[Delivered | None]
"""Messages to acknowledge; None once the channel is lost."""


@asynccontextmanager
async def open_stream(
    connection: BrokerConnection, stream: str, seconds: float
) -> AsyncIterator[tuple[MessageChannel, Arrived]]:
    """Consume a stream: the messages of the last `seconds`, then new ones; raises BROKER_ERRORS.

    The broker measures the seconds; a timestamp would depend on the clock of this machine. The loss
    of the channel is no loss of the connection.
    """
    arrived = Arrived()

    def on_lost(*_reason: Any) -> None:
        arrived.put_nowait(None)

    channel = await connection.channel(prefetch=_PREFETCH, on_lost=on_lost)
    consuming = False
    try:
        arguments = {"x-stream-offset": f"{math.ceil(seconds)}s"}
        await channel.consume([stream], arrived.put_nowait, arguments=arguments)
        consuming = True
        yield channel, arrived
    finally:
        if channel.closed:
            connection.forget_channel(channel)
        else:
            with suppress(*BROKER_ERRORS):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    if consuming:  # no message may arrive while the channel closes
                        await channel.stop_consuming([stream])
                    await connection.close_channel(channel)
