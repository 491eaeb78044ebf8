"""End background tasks."""

import asyncio
from typing import Any, Final

__all__ = ["end"]

_AGAIN_SECONDS: Final = 0.2
"""Time after which a task that has not ended is cancelled again."""


async def end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks and wait until they have ended; their errors are dropped.

    Drivers can swallow a cancellation, for example one that arrives together with a timeout of
    asyncio.wait_for. A loop around such a call would go on for ever after a single cancellation.
    """
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_AGAIN_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)
