"""Reconnects to the broker: tries its nodes in random order, with growing delays."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from yarl import URL

from shared.bus.amqp.broker_errors import broker_errors

__all__ = ["keep_connected", "node_name"]

_log = structlog.get_logger()
_FIRST_DELAY: Final = 0.1
"""Seconds before the first attempt to reconnect; the delay doubles with each failed attempt."""
_LAST_DELAY: Final = 2.0
"""Longest delay between two attempts, in seconds."""
_STABLE_SECONDS: Final = 5.0
"""The delay starts again from the first one after a connection that lasted longer."""
_MAX_ERROR: Final = 500
"""Characters of an error in the log."""


async def keep_connected(
    nodes: Sequence[URL], run_session: Callable[[URL], Awaitable[None]]
) -> None:
    """Run one session after another until cancelled; `run_session` returns once its node is lost.

    Each attempt tries the nodes of the broker in random order, the next one as soon as one fails,
    by an exception of `run_session`; the delay begins when all have failed.
    """
    delay = _FIRST_DELAY
    while True:
        for url in random.sample(nodes, len(nodes)):
            began = time.monotonic()
            if await _try(url, run_session, delay):
                if time.monotonic() - began > _STABLE_SECONDS:
                    delay = _FIRST_DELAY
                break
        await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
        delay = min(delay * 2, _LAST_DELAY)


async def _try(url: URL, run_session: Callable[[URL], Awaitable[None]], delay: float) -> bool:
    """Run a session with one node; return whether it could be opened."""
    try:
        with broker_errors():
            await run_session(url)
    except Exception as error:  # noqa: BLE001  # a server of another kind, or an option of the address, makes aiormq raise anything
        _log.warning(
            "bus.not_connected",
            broker=node_name(url),
            setting="POSTBUS_AMQP_URL",
            error=repr(error)[:_MAX_ERROR],
            retry_in=delay,
        )
        return False
    return True


def node_name(url: URL) -> str:
    """Return host and port of a node, for the log."""
    return f"{url.host}:{url.port}"
