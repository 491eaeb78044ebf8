"""Publishes the replies of a server, on a channel for each service that calls it."""

import logging
from typing import Final

from shared.bus.amqp.batches import MAX_BATCHED, Batch, BatchCollector
from shared.bus.amqp.broker_errors import BROKER_ERRORS, broker_errors
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.message_properties import PROTOBUF, Header
from shared.bus.amqp.publishers import Publishers
from shared.bus.amqp.received_calls import BatchedCall
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.topology import exchange
from shared.bus.reply import with_unknown_outcome
from shared.limited_log import LimitedLog
from shared.security_log import SecurityLog

__all__ = ["ReplyChannels", "ReplySender"]

_MAX_ERROR: Final = 200
"""Characters of an error in the log."""


class ReplySender:
    """Publishes replies. Small replies of one event-loop tick share a message per caller.

    Only callers that send batches get batches. `control_queue` is the reply-to of the replies:
    callers send credit there.
    """

    def __init__(self, control_queue: str, service: str) -> None:
        self.header = Header(PROTOBUF, control_queue, service)
        self._batches: BatchCollector[tuple[MessageChannel, str]] = BatchCollector(self._send_batch)

    def send(self, channel: MessageChannel, message: Delivered, reply: bytes) -> None:
        """Send the reply to a call. `channel` is that of its caller's replies.

        A call that was delivered before may have had its effect there: an error does not claim
        NO_EFFECT.
        """
        reply_to = message.reply_to
        if message.redelivered:
            reply = with_unknown_outcome(reply)
        if type(message) is not BatchedCall or len(reply) > MAX_BATCHED:
            header = self.header(message.correlation_id)
            channel.publish(channel.exchange, reply_to, header, reply)
        else:
            target = channel, reply_to
            self._batches.add(channel.transport, target, message.correlation_id, reply)

    def _send_batch(self, target: tuple[MessageChannel, str], batch: Batch) -> None:
        channel, reply_to = target
        channel.publish(channel.exchange, reply_to, self.header(""), batch.pack())


class ReplyChannels:
    """Finds the channel to the caller of a call, by the user id that RabbitMQ has validated."""

    def __init__(
        self, publishers: Publishers, service: str, log: LimitedLog, *, security_log: SecurityLog
    ) -> None:
        self.by_user: dict[str, MessageChannel] = {}
        """The channels of earlier calls, by the user id of their sender; they may be closed."""
        self._publishers = publishers
        self._service = service
        self._log = log
        self._security_log = security_log

    async def open(self, message: Delivered) -> MessageChannel | None:
        """Return the channel for replies to the sender of a call; None if the call is dropped.

        RabbitMQ validates the user id: a reply goes to an exchange of the service that has called.
        """
        service = self.calling_service("call", message, message.reply_to)
        if not service:
            return None
        try:
            with broker_errors():
                replies = await self._publishers.open(exchange("replies", service))
                self.by_user[message.user_id] = replies
                return replies
        except BROKER_ERRORS as error:
            self._log.write(logging.WARNING, "call.dropped", reason=str(error)[:_MAX_ERROR])
            return None

    def calling_service(self, kind: str, message: Delivered, reply_to: str) -> str:
        """Return the service to which a reply may be sent; empty if there is none.

        A message of this service itself may be the call of another one, which a server has handed
        on as it stopped. A message of another sender, a "call" or a "control" as `kind` says, is
        logged as refused.
        """
        service = reply_to.partition(".")[0]
        known = service and message.user_id in (service, self._service)
        if known and not message.dead_lettered:  # no queue of calls or controls has dead letters
            return service
        self._security_log.refuse_sender(kind, message.routing_key, message.user_id)
        return ""
