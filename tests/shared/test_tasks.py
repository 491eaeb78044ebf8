"""Background tasks end, whatever swallows their cancellation."""

import asyncio
from contextlib import suppress

from shared import tasks


async def _stubborn() -> None:
    """Swallow the first cancellation, like a loop around a driver."""
    with suppress(asyncio.CancelledError):
        await asyncio.Future()
    await asyncio.Future()


async def _failing() -> None:
    raise RuntimeError


async def test_task_that_swallows_a_cancellation_is_cancelled_until_it_ends() -> None:
    running = [asyncio.create_task(run()) for run in (_stubborn, _failing)]
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await tasks.end(*running)

    assert [task.done() for task in running] == [True, True]
    assert running[0].cancelled()


async def test_end_of_no_task_or_of_ended_tasks_returns_at_once() -> None:
    ended = asyncio.create_task(asyncio.sleep(0))
    await ended

    await tasks.end()
    await tasks.end(ended)

    assert not ended.cancelled()
