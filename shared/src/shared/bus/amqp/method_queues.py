"""The queues of the methods that a worker serves."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from pamqp.commands import Queue as QueueMethods

from shared.bus.amqp.batches import batch_route
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_errors import BROKER_ERRORS
from shared.bus.amqp.declarations import Binding, Queue
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.message_properties import PROTOBUF, properties
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.topology import exchange, method_queue
from shared.bus.call import budget_of, read_request
from shared.errors import ServiceError

__all__ = ["MethodQueues"]

_DRAIN_SECONDS: Final = 1.0
"""Longest time for which the last server of a queue waits until all calls have started."""
_LONGEST_MS: Final = 60_000
"""Longest expiration of a call that is returned to the queue."""


class MethodQueues:
    """One queue for each route of a service, named after `prefix` and the route.

    Workers of versions before the transient queues have durable ones of the same names. They are
    joined with `transient=False`, and deleted with their last consumer.
    """

    def __init__(
        self, service: str, prefix: str, routes: Iterable[str], *, transient: bool = True
    ) -> None:
        self.names = {route: f"{prefix}.{route}" for route in routes}
        """By route."""
        self.created: dict[str, float] = {}
        """The time of the creation of queues, by route, for those that this server has created."""
        self._service = service
        self._transient = transient

    async def consume(self, channel: MessageChannel, handler: Callable[[Delivered], None]) -> None:
        """Declare, consume and bind the queues; raises BROKER_ERRORS."""
        sent = time.monotonic()
        new = await channel.consume(
            self.names.values(),
            handler,
            declared=self.declarations(),
            # after the start of the consumer: a draining server unbinds if it sees no other
            bound=self.bindings(self.names),
        )
        # Without a consumer, a queue had no binding either, so it has got no call before.
        self.created.update({route: sent for route, name in self.names.items() if name in new})

    def declarations(self) -> list[Queue]:
        """Return the queues without their bindings to the calls exchange."""
        return [
            replace(method_queue(self._service, name, route), transient=self._transient)
            for route, name in self.names.items()
        ]

    def bindings(self, routes: Iterable[str]) -> list[Binding]:
        """Return the bindings of routes to the calls exchange: single calls and batches."""
        name = exchange("calls", self._service)
        return [
            Binding(self.names[route], name, key)
            for route in routes
            for key in (route, batch_route(route))
        ]

    def retry_bindings(self) -> list[Binding]:
        """Return the bindings to the exchange of calls that a server hands on."""
        return [binding for queue in self.declarations() for binding in queue.bindings]

    async def check(self, connection: BrokerConnection) -> None:
        """Raise MissingError if a queue does not exist."""
        await self._states(connection, self.names)

    async def delete_unused(self, connection: BrokerConnection) -> None:
        """Delete the queues that have no consumer, so that the next start can succeed.

        A node that is stopped ends its queues seconds before itself, and keeps their names.
        """
        with suppress(*BROKER_ERRORS):  # such as: in use
            await connection.request_all(
                [QueueMethods.Delete(queue=name, if_unused=True) for name in self.names.values()]
            )

    async def drain(self, channel: MessageChannel, waiting: Callable[[], int]) -> None:
        """Unbind the queues of which this is the last server, and wait until their calls started.

        The broker deletes an auto-delete queue, with its calls, when its last consumer is gone.
        `waiting` returns the number of the calls that the server holds unstarted.
        """
        last = await self._served_alone(channel, self.names)
        if not last:
            return
        await channel.request_all([each.removal() for each in self.bindings(last)])
        alone = await self._served_alone(channel, last)
        if joined := [route for route in last if route not in alone]:  # another one has started
            await channel.request_all(
                [method for each in self.bindings(joined) for method in each.methods()]
            )
        # No timeout: aiormq closes the channel, which ends the session, if a declaration is
        # cancelled.
        end = time.monotonic() + _DRAIN_SECONDS
        while alone and time.monotonic() < end:
            states = await self._states(channel, alone)
            if not any(state.message_count for state in states) and not waiting():
                return
            await asyncio.sleep(0.02)

    async def _served_alone(self, channel: MessageChannel, routes: Iterable[str]) -> list[str]:
        """Return the routes that no other process serves."""
        routes = list(routes)
        states = await self._states(channel, routes)
        return [
            route for route, state in zip(routes, states, strict=True) if state.consumer_count == 1
        ]

    async def _states(
        self, sender: BrokerConnection | MessageChannel, routes: Iterable[str]
    ) -> list[Any]:
        return await sender.request_all(
            [QueueMethods.Declare(queue=self.names[route], passive=True) for route in routes]
        )

    def hand_on(self, channel: MessageChannel, call: Delivered, request: bytes) -> None:
        """Publish a call that was not started to its queue as a single call, for another server.

        A rejected message would keep the budget that it had when it arrived here.
        """
        milliseconds = _LONGEST_MS
        with suppress(ServiceError):  # the next server replies to a malformed request
            milliseconds = int(budget_of(read_request(request)) * 1000)
        header = properties(
            PROTOBUF,
            correlation_id=call.correlation_id,
            reply_to=call.reply_to,
            expiration_ms=min(max(milliseconds, 1), _LONGEST_MS),
            user_id=self._service,
        )
        channel.publish(exchange("retry", self._service), call.routing_key, header, request)
