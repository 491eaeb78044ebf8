"""Publishes calls: in batches, or each in a message of its own."""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from shared.bus.amqp.batches import MAX_BATCHED, Batch, BatchCollector, batch_route, unpack
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.message_properties import PROTOBUF, Header
from shared.bus.envelope import with_budget

__all__ = ["CallSender", "PendingCall"]

_UNBATCHED_SECONDS: Final = 10
"""How long a route gets no batches after one was returned as unroutable."""
_BUDGETS_PER_SECOND: Final = 10
"""Budgets that differ by more than 100 ms are in different batches."""

PendingCall = tuple["asyncio.Future[bytes]", str, float, float, str]
"""Reply, route, deadline and time of sending (by `time.monotonic()`), and the service that may
reply; a plain tuple is fast."""


class CallSender:
    """Publishes calls. Small calls of one event-loop tick to one route share a message.

    A batch that is returned as unroutable is sent again call by call: a server without support for
    batches may serve the route.
    """

    def __init__(self, channel: MessageChannel, reply_to: str, service: str) -> None:
        self.channel = self._channel = channel
        self.callee = channel.service
        """The service that owns the routes."""
        self.pending: dict[str, asyncio.Future[bytes]] = {}
        """The calls that were sent and have no reply, by correlation id."""
        self._exchange = channel.exchange
        self._header = Header(PROTOBUF, reply_to, service)
        self._batches: BatchCollector[tuple[str, int]] = BatchCollector(self._send_batch)
        self._unbatched_routes: set[str] = set()

    def send(
        self, route: str, request: bytes, correlation_id: str, budget: float, *, only: bool
    ) -> None:
        """Send a call, in a batch if possible; immediately if it is the `only` pending call.

        Calls share a batch only if their budgets differ by less than 100 ms: the batch expires at
        the end of the longest one.
        """
        if only or len(request) > MAX_BATCHED or route in self._unbatched_routes:
            self.send_single(route, request, correlation_id, budget, immediately=only)
        else:
            target = route, int(budget * _BUDGETS_PER_SECOND)
            request = with_budget(request, budget)
            self._batches.add(self._channel.transport, target, correlation_id, request, budget)

    def send_single(
        self,
        route: str,
        request: bytes,
        correlation_id: str,
        budget: float,
        *,
        immediately: bool = False,
    ) -> None:
        """Send a call in a message of its own; it expires after `budget` seconds."""
        header = self._header(correlation_id, max(int(budget * 1000), 1))
        request = with_budget(request, budget)
        self._channel.publish(
            self._exchange, route, header, request, mandatory=True, immediately=immediately
        )

    def resend_unbatched(
        self, route: str, batch: bytes, pending: Mapping[str, PendingCall]
    ) -> None:
        """Send the pending calls of a returned batch one by one."""
        if route not in self._unbatched_routes:
            self._unbatched_routes.add(route)
            loop = asyncio.get_running_loop()
            loop.call_later(_UNBATCHED_SECONDS, self._unbatched_routes.discard, route)
        now = time.monotonic()
        for correlation_id, request in unpack(batch):
            if correlation_id in pending:
                _, _, deadline, _, _ = pending[correlation_id]
                self.send_single(route, request, correlation_id, deadline - now)

    def _send_batch(self, target: tuple[str, int], batch: Batch) -> None:
        route, _ = target
        if len(batch.ids) == 1:
            self.send_single(route, batch.messages[0], batch.ids[0], batch.budget)
            return
        header = self._header("", max(int(batch.budget * 1000), 1))
        key = batch_route(route)
        self._channel.publish(self._exchange, key, header, batch.pack(), mandatory=True)
