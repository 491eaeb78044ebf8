"""Publishes control messages: cancellations, credit, broadcasts and probes."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from postbus.bus.v1 import Control
from shared.bus.amqp.broker_errors import BROKER_ERRORS, broker_errors
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.message_properties import PROTOBUF, properties
from shared.bus.amqp.publishers import Publishers
from shared.bus.amqp.topology import exchange, owner
from shared.wire import encode

__all__ = ["ControlSender"]


class ControlSender:
    """Publishes the control messages of a client; its replies go to the queue `reply_to`.

    The messages are lost, without an error, while their service or the broker is unavailable.
    """

    def __init__(self, publishers: Publishers, service: str, reply_to: str) -> None:
        self._publishers = publishers
        self._reply_to = reply_to
        self._header = properties(PROTOBUF, user_id=service)
        self._tasks: set[asyncio.Task[None]] = set()

    def cancel(self, route: str, correlation_id: str) -> None:
        """Publish the cancellation of a call to every server of its route, as any may run it."""
        self.send(owner(route), route, Control(correlation_id=correlation_id, cancel=True))

    def send(self, service: str, routing_key: str, control: Control) -> None:
        """Publish a control message to the processes of a service, by the routing key."""
        control.reply_to = self._reply_to
        self._publish(service, routing_key, encode(control))

    def probe(self, id_: str, route: str, waiting_ms: int) -> None:
        """Publish a probe, which is returned if no process serves the route."""
        probe = Control(reply_to=self._reply_to, correlation_id=id_, waiting_ms=waiting_ms)
        self._publish(owner(route), route, encode(probe), mandatory=True)

    def _publish(
        self, service: str, routing_key: str, body: bytes, *, mandatory: bool = False
    ) -> None:
        name = exchange("control", service)
        publish = partial(
            MessageChannel.publish,
            exchange=name,
            routing_key=routing_key,
            header=self._header,
            body=body,
            mandatory=mandatory,
        )
        if channel := self._publishers.channels.get(name):
            publish(channel)
            return
        task = asyncio.get_running_loop().create_task(self._open_and_publish(name, publish))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_and_publish(self, name: str, publish: Callable[[MessageChannel], None]) -> None:
        with suppress(*BROKER_ERRORS), broker_errors():
            publish(await self._publishers.open(name))
