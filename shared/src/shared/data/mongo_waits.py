"""Cancellable waits of the MongoDB driver on Python 3.11.

pymongo waits for a server, or for a free connection, with asyncio.wait_for(condition.wait(), ...)
while it owns the condition's lock. Before Python 3.12, wait_for runs that as a second task. A task
that is cancelled while the second one acquires the lock again continues at once and releases the
lock, and then the second task acquires it for ever: every later operation of the client, its
monitors and its close() are blocked. Deadlines cancel tasks, so this happens under load as soon as
no server is available. asyncio.timeout has neither this fault nor that of swallowed cancellations
(cpython issue 86296); SQLAlchemy and asyncpg use it for the same reason.
"""

import asyncio
import sys
from collections.abc import Awaitable
from typing import TypeVar

import pymongo.lock

__all__ = ["make_cancellable"]

T = TypeVar("T")


def make_cancellable() -> None:
    """Make the waits of all clients cancellable; no effect from Python 3.12 on, or if repeated."""
    if sys.version_info < (3, 12):
        pymongo.lock.wait_for = _wait_for  # type: ignore[assignment, attr-defined]  # an import there


async def _wait_for(awaitable: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109
    """Await in the caller's task, as in Python 3.12."""
    async with asyncio.timeout(timeout):
        return await awaitable
