"""The calls that arrived in a batch, at their server."""

from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.received_messages import Delivered

__all__ = ["BatchedCall", "ReceivedBatch", "acknowledge"]


class ReceivedBatch:
    """A batch of which calls are unfinished."""

    __slots__ = ("redelivered", "tag", "unfinished")

    def __init__(self, tag: int, unfinished: int, *, redelivered: bool) -> None:
        self.redelivered = redelivered
        self.tag = tag
        self.unfinished = unfinished


class BatchedCall(Delivered):
    """A call that arrived in a batch."""

    __slots__ = ("batch",)

    def __init__(
        self,
        batch: ReceivedBatch,
        route: str,
        correlation_id: str,
        message: Delivered,
        request: bytes,
    ) -> None:
        super().__init__(
            batch.tag,
            route,
            correlation_id,
            message.reply_to,
            message.encoded_headers,
            request,
            message.user_id,
        )
        self.redelivered = batch.redelivered
        self.batch = batch


def acknowledge(channel: MessageChannel, call: Delivered) -> None:
    """Acknowledge a finished call; a batch once all its calls have finished."""
    if type(call) is not BatchedCall:
        channel.ack(call.tag)
        return
    call.batch.unfinished -= 1
    if not call.batch.unfinished:
        channel.ack(call.tag)
