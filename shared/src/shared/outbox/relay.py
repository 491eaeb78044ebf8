"""The outbox relay: publishes the stored events, and purges old operations."""

import asyncio
import random
from typing import Final

import structlog

from shared.logged_errors import describe
from shared.outbox.outbox import Publish
from shared.outbox.unit_of_work import Store

__all__ = ["flush", "relay"]

_log = structlog.get_logger()
_POLL_SECONDS: Final = 1.0
_FIRST_DELAY: Final = 0.1
_LONGEST_DELAY: Final = 5.0
_FLUSH_SECONDS: Final = 1.0
_PURGE_SECONDS: Final = 300.0


async def relay(store: Store, publish: Publish) -> None:
    """Publish the events of the outbox until cancelled, immediately after each commit.

    The outbox is also polled every second, for the events of processes that were killed.
    """
    await asyncio.gather(_forward(store, publish), _purge(store))


async def _forward(store: Store, publish: Publish) -> None:
    delay = 0.0
    while True:
        store.committed.clear()
        try:
            forwarded = await store.forward(publish)
        except Exception as error:  # noqa: BLE001  # after any error the outbox still has the events
            if not delay:
                _log.warning("relay.delayed", error=describe(error))
            delay = min(max(2 * delay, _FIRST_DELAY), _LONGEST_DELAY)
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # jitter
            continue
        delay = 0.0
        if not forwarded:
            await _wait(store.committed)


async def flush(store: Store, publish: Publish) -> None:
    """Publish the events of the outbox for one second at most.

    The remaining events are published by the next process.
    """
    try:
        async with asyncio.timeout(_FLUSH_SECONDS):
            while await store.forward(publish):
                pass
    except Exception as error:  # noqa: BLE001  # after any error the outbox still has the events
        _log.warning("relay.delayed", error=describe(error))


async def _wait(committed: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_POLL_SECONDS):
            await committed.wait()
    except TimeoutError:
        return


async def _purge(store: Store) -> None:
    while True:
        await asyncio.sleep(_PURGE_SECONDS * random.uniform(0.5, 1))  # noqa: S311  # jitter
        try:
            await store.purge()
        except Exception as error:  # noqa: BLE001  # the next purge deletes the same operations
            _log.warning("inbox.not_purged", error=describe(error))
