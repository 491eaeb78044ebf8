"""Waiting for a slot of the concurrency limit."""

import asyncio

import pytest

from shared.bus.concurrency_limit import ConcurrencyLimit, current_slot


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


async def test_slot_is_not_acquired_before_a_waiter() -> None:
    limit = ConcurrencyLimit(1)
    assert limit.try_acquire()
    waiting = asyncio.create_task(limit.acquire())
    await asyncio.sleep(0)
    limit._free = 1  # between the release and the turn of the waiter

    assert not limit.try_acquire()

    limit._free = 0
    limit.release()
    await waiting


async def test_cancelled_waiter_does_not_wait_any_more() -> None:
    limit = ConcurrencyLimit(1)
    assert limit.try_acquire()
    waiting = asyncio.create_task(limit.acquire())
    await asyncio.sleep(0)
    assert limit.waiting == 1

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    assert limit.waiting == 0


async def test_slot_is_free_during_nested_calls_only() -> None:
    limit = ConcurrencyLimit(1)
    assert limit.try_acquire()
    slot = current_slot()
    assert slot is not None

    with slot, slot:  # two nested calls at once
        assert limit.try_acquire()
        assert not limit.try_acquire()
        limit.release()
    assert not limit.try_acquire()

    limit.release()
    assert limit.try_acquire()


async def test_waiter_cancelled_after_release_frees_the_slot() -> None:
    limit = ConcurrencyLimit(1)
    assert limit.try_acquire()
    first, second = (asyncio.create_task(limit.acquire()) for _ in range(2))
    await asyncio.sleep(0)

    limit.release()
    first.cancel()  # it has the slot and has not run

    async with asyncio.timeout(1):
        await second
    with pytest.raises(asyncio.CancelledError):
        await first
