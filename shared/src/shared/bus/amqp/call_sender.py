"""Publishes calls: in batches, or each in a message of its own. Each service has a channel."""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from postbus.bus.v1 import Outcome
from shared.bus.amqp.batches import MAX_BATCHED, Batch, BatchCollector, batch_route, unpack
from shared.bus.amqp.broker_errors import BROKER_ERRORS, MissingError
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.message_properties import PROTOBUF, Header
from shared.bus.amqp.publishers import Publishers
from shared.bus.amqp.topology import exchange, owner
from shared.bus.call import with_budget
from shared.bus.call_errors import no_route, not_connected
from shared.errors import ServiceError, deadline_exceeded

__all__ = ["CallSender", "CallSenders", "PendingCall"]

_UNBATCHED_SECONDS: Final = 10
"""How long a route gets no batches after one was returned as unroutable."""
_BUDGETS_PER_SECOND: Final = 10
"""Budgets that differ by more than 100 ms are in different batches."""

PendingCall = tuple["asyncio.Future[bytes]", str, float, float, "CallSender"]
"""Reply, route, deadline and time of sending (by `time.monotonic()`), and sender; a plain tuple is
fast."""


class CallSender:
    """Publishes calls. Small calls of one event-loop tick to one route share a message.

    A batch that is returned as unroutable is sent again call by call: a server without support for
    batches may serve the route.
    """

    def __init__(self, channel: MessageChannel, reply_to: str, service: str) -> None:
        self.channel = channel
        self.callee = channel.service
        """The service that owns the routes, and may reply."""
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
            self._batches.add(self.channel.transport, target, correlation_id, request, budget)

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
        self.channel.publish(
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
        self.channel.publish(self._exchange, key, header, batch.pack(), mandatory=True)


class CallSenders:
    """Opens one sender of calls per callee. Replies to `service` go to the queue `reply_to`.

    The routes of a callee share a sender, and with it a channel, whose loss concerns only the calls
    to this callee. `suspicious` is set once a method of `service` itself is unroutable.
    """

    def __init__(
        self, publishers: Publishers, service: str, reply_to: str, suspicious: asyncio.Event
    ) -> None:
        self.by_route: dict[str, CallSender] = {}
        self._publishers = publishers
        self._service = service
        self._reply_to = reply_to
        self._suspicious = suspicious

    async def open(self, route: str, budget: float) -> CallSender:
        """Return the sender of the calls of a route, at the latest after `budget` seconds.

        UNAVAILABLE, NO_ROUTE if the service that owns the route has no exchange.
        """
        name = exchange("calls", owner(route))
        try:
            async with asyncio.timeout(budget):
                channel = await self._publishers.open(name)
        except MissingError:
            raise self.no_route(route) from None
        except TimeoutError:
            raise deadline_exceeded(Outcome.NO_EFFECT) from None
        except BROKER_ERRORS:
            raise not_connected() from None
        for sender in self.by_route.values():
            if sender.channel is channel:
                break
        else:
            sender = CallSender(channel, self._reply_to, self._service)
        self.by_route[route] = sender
        return sender

    def no_route(self, route: str) -> ServiceError:
        """Return the error of an unroutable call."""
        if owner(route) == self._service:  # a queue or binding of this process may be missing
            self._suspicious.set()
        return no_route()

    def forget(self, channel: MessageChannel) -> None:
        """Keep no sender of a channel that is lost."""
        for route, sender in list(self.by_route.items()):
            if sender.channel is channel:
                del self.by_route[route]
