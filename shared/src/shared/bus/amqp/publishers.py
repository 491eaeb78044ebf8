"""Publishing channels to the exchanges of other services."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from pamqp.commands import Exchange

from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_errors import MissingError
from shared.bus.amqp.message_channel import MessageChannel, retrieve_exception
from shared.bus.amqp.received_messages import Returned

__all__ = ["Publishers"]

_OPEN_SECONDS: Final = 5.0
"""Longest time to open a channel."""
_REOPEN_SECONDS: Final = 0.5
"""Time after a refusal of the broker in which the channel of an exchange is not opened again."""
_MAX_CHANNELS: Final = 64
"""Exchanges with a channel; there are three for each service."""


class Publishers:
    """A channel for each exchange of another service, opened when it is needed.

    The broker closes a channel on which a message is published to a missing exchange, or without
    the right to do so. A channel of its own limits the effect to the exchange.
    """

    def __init__(self, connection: BrokerConnection) -> None:
        self.on_returned: Callable[[Returned], None] = lambda _: None
        """Gets unroutable messages."""
        self.on_lost: Callable[[MessageChannel], None] = lambda _: None
        """Gets a channel that is lost."""
        self.channels: dict[str, MessageChannel] = {}
        """The open channels, by exchange."""
        self._connection = connection
        self._opening: dict[str, asyncio.Task[MessageChannel]] = {}
        self._refused: dict[str, float] = {}
        """Until when an exchange counts as missing."""

    async def open(self, exchange: str) -> MessageChannel:
        """Return the channel of an exchange.

        MissingError if the exchange is missing, or was missing shortly before; raises
        BROKER_ERRORS.
        """
        if channel := self.channels.get(exchange):
            return channel
        loop = asyncio.get_running_loop()
        if self._refused.get(exchange, 0.0) > loop.time():
            raise MissingError(f"there was no exchange {exchange}")
        opening = self._opening.get(exchange)
        if opening is None:
            opening = self._opening[exchange] = loop.create_task(self._open(exchange))
            opening.add_done_callback(partial(self._opened, exchange))
        return await asyncio.shield(opening)

    async def _open(self, exchange: str) -> MessageChannel:
        if len(self.channels) >= _MAX_CHANNELS:
            raise MissingError(f"no channel is left for {exchange}")
        channel: MessageChannel | None = None

        def lost(*_reason: Any) -> None:
            self._refuse(exchange)
            if channel is not None:
                self._connection.forget_channel(channel)
                if self.channels.pop(exchange, None) is not None:
                    self.on_lost(channel)

        async with asyncio.timeout(_OPEN_SECONDS):
            channel = await self._connection.channel(exchange=exchange, on_lost=lost)
            channel.on_returned(self.on_returned)
            await channel.request_all([Exchange.Declare(exchange=exchange, passive=True)])
        self.channels[exchange] = channel
        return channel

    def _opened(self, exchange: str, opening: asyncio.Task[MessageChannel]) -> None:
        del self._opening[exchange]
        retrieve_exception(opening)

    def _refuse(self, exchange: str) -> None:
        if len(self._refused) >= _MAX_CHANNELS:
            self._refused.clear()
        self._refused[exchange] = asyncio.get_running_loop().time() + _REOPEN_SECONDS
