"""The relay: from the outbox of a service to the broker, and what else is done beside the work."""

import asyncio
import random
from collections.abc import Sequence
from typing import Final

import structlog

from postbus.bus.v1 import Event
from shared.outbox.unit_of_work import Publish, Store

__all__ = ["flush", "publish_all", "relay"]

_log = structlog.get_logger()
_POLL_SECONDS: Final = 1.0
_LONGEST_DELAY: Final = 5.0
_FLUSH_SECONDS: Final = 1.0
_PURGE_SECONDS: Final = 300.0


async def relay(store: Store, publish: Publish) -> None:
    """Hand the events of the outbox to the broker until cancelled: at once after each commit.

    Every second it also looks for what a worker that was killed has left.
    """
    await asyncio.gather(_forward(store, publish), _purge(store))


async def _forward(store: Store, publish: Publish) -> None:
    delay = 0.0
    while True:
        store.committed.clear()
        try:
            forwarded = await store.forward(publish)
        except Exception as error:  # noqa: BLE001  # whatever it is, the events still wait
            if not delay:
                _log.warning("relay.delayed", error=repr(error))
            delay = min(max(2 * delay, 0.1), _LONGEST_DELAY)
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # jitter
            continue
        delay = 0.0
        if not forwarded:
            await _wait(store.committed)


async def flush(store: Store, publish: Publish) -> None:
    """Hand over what waits, if that is soon done; the next worker finds the rest."""
    try:
        async with asyncio.timeout(_FLUSH_SECONDS):
            while await store.forward(publish):
                pass
    except Exception as error:  # noqa: BLE001  # as above
        _log.warning("relay.delayed", error=repr(error))


async def _wait(event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_POLL_SECONDS):
            await event.wait()
    except TimeoutError:
        return


async def _purge(store: Store) -> None:
    while True:
        await asyncio.sleep(_PURGE_SECONDS * random.uniform(0.5, 1))  # noqa: S311  # jitter
        try:
            await store.purge()
        except Exception as error:  # noqa: BLE001  # as above
            _log.warning("inbox.not_purged", error=repr(error))


async def publish_all(
    publish: Publish, events: Sequence[Event]
) -> tuple[list[str], BaseException | None]:
    """Publish events in order; return the ids of those that the broker has, and what went wrong."""
    results = await asyncio.gather(*(publish(event) for event in events), return_exceptions=True)
    done = [event.id for event, result in zip(events, results, strict=True) if result is None]
    return done, next((result for result in results if result is not None), None)
