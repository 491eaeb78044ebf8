"""Periodic deletion of expired rows."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

__all__ = ["upkeep"]

_log = structlog.get_logger()
_SECONDS: Final = 60.0
"""Longest time between two runs."""


@asynccontextmanager
async def upkeep(*purges: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run `purges` about once a minute until the end of the context, the first time at once."""
    running = asyncio.create_task(_run(purges))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _run(purges: tuple[Callable[[], Awaitable[None]], ...]) -> None:
    while True:
        for purge in purges:
            try:
                await purge()
            except Exception as error:  # noqa: BLE001  # the database may be unavailable: later then
                _log.warning("purge.failed", error=type(error).__name__)
        await asyncio.sleep(_SECONDS * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
