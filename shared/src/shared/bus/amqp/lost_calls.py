"""Finds the calls of a worker that has died.

The broker deletes a queue with its last consumer, and the calls in it, without a message to their
callers. Two signs show it to them:

- Each process of a worker also has an exclusive queue for controls, bound by its routes from before
  its first call until after its last reply. If a mandatory probe is returned, no process is left
  that could reply to the earlier calls of its route.
- A process that has started soon after the death has created the queue of the route again. It
  answers the probe with the age of the queue: earlier calls that no process holds are lost.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from postbus.bus.v1 import ProbeAnswer
from shared.bus.call_errors import worker_lost
from shared.errors import ServiceError
from shared.wire import decode

__all__ = ["LostCalls", "Probe"]

_INTERVAL: Final = 0.5
"""Seconds between the probes of a route; a younger call is not probed."""
_GRACE: Final = 0.1
"""Seconds for replies that the worker sent before it stopped, and for other answers."""
_MAX_ANSWER: Final = 2**16
"""Bytes of an answer; a worker holds 1024 calls at most."""

SentBefore = Callable[[float], Iterable[tuple[str, str, float]]]
"""Returns id, route and time of sending of each pending call that was sent before a time."""


@dataclass(slots=True)
class Probe:
    """A probe of a route, with its answers. Times are by `time.monotonic()`."""

    route: str
    sent: float
    oldest: float
    """When the oldest call of the route was sent."""
    held: set[str] = field(default_factory=set)
    """Ids of the calls that a process holds."""
    recreated: bool = False
    """Whether a process has answered that it has created the queue since `oldest`."""


class LostCalls:
    """Fails the pending calls of a worker that has died, within about two seconds.

    Every half a second `publish` publishes a probe for each route with older calls: its id, the
    route, and the milliseconds for which the oldest call has waited. `ids` yields the ids.
    """

    def __init__(
        self,
        publish: Callable[[str, str, int], None],
        sent_before: SentBefore,
        fail: Callable[[str, ServiceError], None],
        ids: Iterator[str],
    ) -> None:
        self._publish = publish
        self._sent_before = sent_before
        self._fail = fail
        self._ids = ids
        self._probes: dict[str, Probe] = {}
        """The last probes, by their ids."""
        self._missing: dict[str, set[str]] = {}
        """By route, the calls that no process held at the last probe but one."""
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_INTERVAL, self._probe)

    def stop(self) -> None:
        """Publish nothing more."""
        self._timer.cancel()

    def _probe(self) -> None:
        self._timer = self._loop.call_later(_INTERVAL, self._probe)
        now = time.monotonic()
        routes: dict[str, Probe] = {}
        for _, route, sent in self._sent_before(now - _INTERVAL):
            probe = routes.setdefault(route, Probe(route, now, sent))
            probe.oldest = min(probe.oldest, sent)
        self._missing = {
            route: missing for route, missing in self._missing.items() if route in routes
        }
        self._probes = {next(self._ids): probe for probe in routes.values()}
        for id_, probe in self._probes.items():
            self._publish(id_, probe.route, int((now - probe.oldest) * 1000))

    def on_returned(self, route: str) -> None:
        """Fail the probed calls of a route: no process has got its probe."""
        for probe in self._probes.values():
            if probe.route == route:
                before = probe.sent - _INTERVAL
                self._loop.call_later(_GRACE, self._fail_calls, route, before)

    def _fail_calls(self, route: str, before: float) -> None:
        for id_, called, _ in self._sent_before(before):
            if called == route:
                self._fail(id_, worker_lost())

    def probed(self, id_: str) -> str:
        """Return the route of a current probe; empty if there is none of this id."""
        probe = self._probes.get(id_)
        return probe.route if probe else ""

    def on_answer(self, id_: str, body: bytes) -> None:
        """Take note of an encoded ProbeAnswer; an answer to an earlier probe is ignored."""
        probe = self._probes.get(id_)
        if probe is None or len(body) > _MAX_ANSWER:
            return
        with suppress(ServiceError):  # any service that is called can send malformed answers
            answer = decode(ProbeAnswer, body)
            probe.held.update(answer.held)
            if answer.queue_age_ms and not probe.recreated:
                probe.recreated = True
                # `sent` is before the arrival of the probe, so this is before the creation
                before = probe.sent - answer.queue_age_ms / 1000
                self._loop.call_later(_GRACE, self._fail_missing, probe, before)

    def _fail_missing(self, probe: Probe, before: float) -> None:
        """Fail the calls that no process has held at two probes.

        At a single one, a call can be on its way: from its caller to the new queue, or from a
        server that stops to another one.
        """
        missing = {
            id_
            for id_, route, _ in self._sent_before(before)
            if route == probe.route and id_ not in probe.held
        }
        for id_ in missing & self._missing.get(probe.route, set()):
            self._fail(id_, worker_lost())
        self._missing[probe.route] = missing
