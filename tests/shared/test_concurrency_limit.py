"""Waiting for a slot of the concurrency limit."""

import asyncio

import pytest

from shared.bus.concurrency_limit import ConcurrencyLimit


async def test_waiter_cancelled_during_release_frees_the_slot() -> None:
    limit = ConcurrencyLimit(1)
    assert limit.try_acquire()
    waiting = [asyncio.create_task(limit.acquire()) for _ in range(5)]
    await asyncio.sleep(0)

    for task in waiting[:4]:
        task.cancel()
    limit.release()  # before the cancelled tasks have run

    await waiting[4]
    for task in waiting[:4]:
        with pytest.raises(asyncio.CancelledError):
            await task
    assert limit.waiting == 0
