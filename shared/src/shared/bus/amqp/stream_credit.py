"""The credit of a stream, at its server."""

import asyncio
from contextlib import suppress
from typing import Final

from shared.bus.message_bus import CREDIT

__all__ = ["StreamCredit"]

_MAX_STALL_SECONDS: Final = 30.0
"""Longest wait for the caller of a stream to grant credit."""


class StreamCredit:
    """The credit of a stream: the number of replies that may still be sent."""

    def __init__(self) -> None:
        self._credit = CREDIT
        self._granted = asyncio.Event()

    def grant(self, credit: int) -> None:
        """Add credit, up to CREDIT in all."""
        self._credit = min(self._credit + credit, CREDIT)
        self._granted.set()

    async def acquire(self) -> bool:
        """Wait for credit and use one; False if the caller grants none for too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_MAX_STALL_SECONDS):
                while self._credit == 0:
                    self._granted.clear()
                    await self._granted.wait()
        if self._credit == 0:
            return False
        self._credit -= 1
        return True
