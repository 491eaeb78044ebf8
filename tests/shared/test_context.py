"""The deadline of a handler."""

import asyncio
import time

import pytest

from shared.context import Context
from shared.errors import Code, Outcome, ServiceError
from shared.trace import new_traceparent


def a_context(seconds: float) -> Context:
    return Context(name="test", deadline=time.monotonic() + seconds, traceparent=new_traceparent())


async def test_block_is_not_entered_after_the_deadline() -> None:
    entered = False

    with pytest.raises(ServiceError) as raised, a_context(-1):
        entered = True

    assert (raised.value.code, raised.value.outcome) == (Code.DEADLINE_EXCEEDED, Outcome.NO_EFFECT)
    assert not entered


async def test_deadline_does_not_affect_the_task_after_the_block() -> None:
    with a_context(0.02):
        pass

    await asyncio.sleep(0.05)  # beyond the deadline


async def test_cancellation_at_the_deadline_remains_a_cancellation() -> None:
    async def handle() -> None:
        task = asyncio.current_task()
        assert task is not None
        with a_context(0.01):
            time.sleep(0.02)  # noqa: ASYNC251  # the timer and the cancellation are due together
            asyncio.get_running_loop().call_later(0, task.cancel)
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(handle())


def test_revision_of_the_callers_account_never_falls() -> None:
    context = a_context(1)

    context.raise_revision(7)
    context.raise_revision(6)

    assert context.caller_revision == 7
