"""Takes calls from the queues of a server, within its bounds, and has them executed."""

import asyncio
from collections.abc import Sequence
from typing import Final

from postbus import reasons
from postbus_runtime.reasons import Reason
from shared.bus.amqp.batches import batch_route, unpack
from shared.bus.amqp.call_execution import CallExecution
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.received_calls import MAX_CALLS, BatchedCall, ReceivedBatch, acknowledge
from shared.bus.amqp.received_messages import Delivered
from shared.bus.reply import error_reply
from shared.errors import ServiceError
from shared.security_log import SecurityLog

__all__ = ["CallReceiver"]

_MAX_BYTES: Final = 64 * 2**20
"""Bytes of the calls that the server holds before it refuses more."""


class CallReceiver:
    """Starts the execution of the calls of `routes` that `channel` delivers, or refuses them."""

    def __init__(
        self,
        channel: MessageChannel,
        routes: Sequence[str],
        execution: CallExecution,
        security_log: SecurityLog,
    ) -> None:
        self._channel = channel
        self._batch_routes = {batch_route(route): route for route in routes}
        self._execution = execution
        self._held = execution.held
        self._security_log = security_log
        self._refusing: dict[object, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()

    def receive(self, message: Delivered) -> None:
        """Take a message with a call, or with a batch of calls."""
        if message.routing_key in self._batch_routes:
            self._receive_batch(message)
        elif message.oversized:
            self._refuse(message, reasons.REQUEST_TOO_LARGE, "The request is larger than 4 MiB.")
        elif len(self._held.running) >= MAX_CALLS or self._held.bytes > _MAX_BYTES:
            self._refuse(message, reasons.OVERLOADED, "The worker is overloaded.")
        else:
            self._held.bytes += len(message.body)
            executing = self._execution.execute(self._channel, message)
            self._held.running[message] = self._loop.create_task(executing)

    def _receive_batch(self, message: Delivered) -> None:
        route = self._batch_routes[message.routing_key]
        try:
            calls = unpack(message.body)
        except ServiceError as error:  # without ids no caller can get a reply
            self._security_log.refuse_message(route, error.reason)
            self._channel.ack(message.tag)
            return
        batch = ReceivedBatch(message.tag, len(calls), redelivered=message.redelivered)
        for correlation_id, request in calls:
            self.receive(BatchedCall(batch, route, correlation_id, message, request))

    def _refuse(self, message: Delivered, reason: Reason, text: str) -> None:
        error = ServiceError(reason, text, retry_after=1)

        async def refuse() -> None:
            try:
                if (replies := await self._execution.replies.open(message)) is not None:
                    self._execution.sender.send(replies, message, error_reply(error))
                acknowledge(self._channel, message)
            finally:
                del self._refusing[message]

        self._refusing[message] = self._loop.create_task(refuse())
