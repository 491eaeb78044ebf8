"""Finds the calls of a worker that has died.

The broker deletes a queue with its last consumer, and the calls in it, without a message to their
callers. But each process of a worker also has an exclusive queue for controls, bound by its routes
from before its first call until after its last reply. If a mandatory Control is returned, no
process is left that could reply to the earlier calls of its route.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from shared.bus.amqp.call_errors import worker_lost
from shared.errors import ServiceError

__all__ = ["LostCalls"]

_INTERVAL: Final = 0.5
"""Seconds between the probes of a route; a younger call is not probed."""
_GRACE: Final = 0.1
"""Seconds for replies that the worker sent before it stopped."""

SentBefore = Callable[[float], Iterable[tuple[str, str]]]
"""Returns correlation id and route of each pending call that was sent before a time."""


class LostCalls:
    """Fails the pending calls of routes that no process serves any more, within about a second.

    Every half a second `probe` publishes an empty Control, which workers ignore, for each route
    with older calls. Times are those of `time.monotonic()`.
    """

    def __init__(
        self,
        probe: Callable[[str], None],
        sent_before: SentBefore,
        fail: Callable[[str, ServiceError], None],
    ) -> None:
        self._publish_probe = probe
        self._sent_before = sent_before
        self._fail = fail
        self._probed: dict[str, float] = {}
        """By route, the time before which its probed calls were sent."""
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_INTERVAL, self._probe)

    def stop(self) -> None:
        """Publish nothing more."""
        self._timer.cancel()

    def _probe(self) -> None:
        self._timer = self._loop.call_later(_INTERVAL, self._probe)
        before = time.monotonic() - _INTERVAL
        self._probed = {route: before for _, route in self._sent_before(before)}
        for route in self._probed:
            self._publish_probe(route)

    def on_returned(self, route: str) -> None:
        """Fail the probed calls of a route: its probe was returned."""
        if route in self._probed:
            self._loop.call_later(_GRACE, self._fail_calls, route, self._probed[route])

    def _fail_calls(self, route: str, before: float) -> None:
        for correlation_id, called in self._sent_before(before):
            if called == route:
                self._fail(correlation_id, worker_lost())
