"""Finds calls whose worker has died.

The broker deletes a queue with its last consumer, and the calls in it, without a message to their
callers. But each process of a worker also has an exclusive queue for controls, bound by its routes
from before its first call until after its last reply. If a mandatory Control is returned, no
process is left that could reply to the earlier calls of its route.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from postbus.bus.v1 import Outcome
from shared.bus.amqp import frames
from shared.bus.amqp.broker_connection import MessageChannel
from shared.bus.amqp.frames import Returned
from shared.bus.amqp.topology import CONTROL_EXCHANGE
from shared.bus.envelope import unavailable
from shared.errors import ServiceError

__all__ = ["LostCalls"]

_INTERVAL: Final = 0.5
"""Seconds between the probes of a route; a younger call is not probed."""
_GRACE: Final = 0.1
"""Seconds for replies that the worker sent before it stopped."""
_HEADER: Final = frames.properties("application/x-protobuf")

SentBefore = Callable[[float], Iterable[tuple[str, str]]]
"""Returns correlation id and route of each pending call that was sent before a time."""


class LostCalls:
    """Fails the pending calls of routes that no process serves any more, within about a second.

    Every half a second it publishes one empty Control, which workers ignore, for each route with
    older calls. Times are those of `time.monotonic()`.
    """

    def __init__(
        self,
        channel: MessageChannel,
        sent_before: SentBefore,
        fail: Callable[[str, ServiceError], None],
    ) -> None:
        self._channel = channel
        self._sent_before = sent_before
        self._fail = fail
        self._probed: dict[str, float] = {}
        """By route, the time before which its probed calls were sent."""
        channel.on_returned(self._on_returned)
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_INTERVAL, self._probe)

    def stop(self) -> None:
        """Publish nothing more."""
        self._timer.cancel()

    def _probe(self) -> None:
        self._timer = self._loop.call_later(_INTERVAL, self._probe)
        if not self._channel.transport.writable:
            return
        before = time.monotonic() - _INTERVAL
        self._probed = {route: before for _, route in self._sent_before(before)}
        for route in self._probed:
            self._channel.publish(CONTROL_EXCHANGE, route, _HEADER, b"", mandatory=True)

    def _on_returned(self, returned: Returned) -> None:
        route = returned.routing_key
        if route in self._probed:
            self._loop.call_later(_GRACE, self._fail_calls, route, self._probed[route])

    def _fail_calls(self, route: str, before: float) -> None:
        for correlation_id, called in self._sent_before(before):
            if called == route:
                self._fail(correlation_id, _worker_lost())


def _worker_lost() -> ServiceError:
    return unavailable(
        "WORKER_LOST",
        "The worker has stopped before it replied; the change may have happened.",
        Outcome.UNKNOWN,
    )
