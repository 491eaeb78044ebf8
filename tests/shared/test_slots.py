"""Who waits for a handler's slot, and gives up."""

import asyncio

import pytest

from shared.bus.concurrency_limit import ConcurrencyLimit


async def test_who_gives_up_as_another_leaves_ends_and_makes_room() -> None:
    slots = ConcurrencyLimit(1)
    assert slots.try_acquire()
    waiting = [asyncio.create_task(slots.acquire()) for _ in range(5)]
    await asyncio.sleep(0)

    for task in waiting[:4]:
        task.cancel()
    slots.release()  # before those who are cancelled have run

    await waiting[4]
    for task in waiting[:4]:
        with pytest.raises(asyncio.CancelledError):
            await task
    assert slots.waiting == 0
