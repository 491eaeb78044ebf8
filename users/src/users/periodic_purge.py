"""Periodic deletion of expired rows."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from shared import tasks

__all__ = ["periodic_purge"]

_log = structlog.get_logger()
_MAX_INTERVAL: Final = 60.0
"""Maximum seconds between two runs."""


@asynccontextmanager
async def periodic_purge(*purges: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run `purges` at the start of the context, and then about once a minute until its end."""
    running = asyncio.create_task(_run(purges))
    try:
        yield
    finally:
        await tasks.end(running)


async def _run(purges: tuple[Callable[[], Awaitable[None]], ...]) -> None:
    while True:
        for purge in purges:
            try:
                await purge()
            except Exception as error:  # noqa: BLE001  # the next run retries, whatever failed
                _log.warning("purge.failed", error=type(error).__name__)
        await asyncio.sleep(_MAX_INTERVAL * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
