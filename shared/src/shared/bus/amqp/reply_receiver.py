"""Takes the replies from the queue of a process, and passes them to its pending calls."""

from collections.abc import Sequence
from typing import Final

from shared.bus.amqp.batches import unpack
from shared.bus.amqp.lost_calls import LostCalls
from shared.bus.amqp.pending_calls import PendingCalls
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.second_replies import REMEMBERED, SecondReplies
from shared.bus.amqp.topology import owner
from shared.bus.call_errors import reply_too_large
from shared.errors import ServiceError
from shared.security_log import SecurityLog

__all__ = ["ReplyReceiver"]

_MAX_SHARED_REPLIES: Final = 128
"""Replies to a broadcast that are kept: more than a service has processes."""
_MAX_SHARED_REPLY: Final = 256 * 2**10
"""Bytes of a reply to a broadcast; a larger one is ignored."""


class ReplyReceiver:
    """Passes replies to calls, streams and broadcasts, and the answers to probes to `lost_calls`.

    Only the service that was called may reply.
    """

    def __init__(
        self,
        pending: PendingCalls,
        lost_calls: LostCalls,
        *,
        security_log: SecurityLog,
        second_replies: SecondReplies,
    ) -> None:
        self._pending = pending
        self._calls = pending.calls
        self._lost_calls = lost_calls
        self._security_log = security_log
        self._second_replies = second_replies

    def receive(self, message: Delivered) -> None:
        """Take a message with a reply, or with a batch of replies to calls."""
        if message.correlation_id:
            replies: Sequence[tuple[str, bytes]] = [(message.correlation_id, message.body)]
        else:
            try:
                replies = unpack(message.body)
            except ServiceError as error:  # any service that is called can send malformed batches
                self._security_log.refuse_message("reply", error.reason)
                return
        for correlation_id, body in replies:
            pending = self._calls.get(correlation_id)
            if pending is None:
                if message.correlation_id:
                    self._receive_other(message)
                else:
                    self._second_replies.check(correlation_id, message)
                continue
            reply, route, _, _, sender = pending
            if message.user_id != sender.callee:
                self._security_log.refuse_sender("reply", route, message.user_id)
            elif message.oversized:
                self._pending.fail(correlation_id, reply_too_large())
            elif reply.done():
                self._second_replies.check(correlation_id, message)
            else:
                reply.set_result(body)
                answered = self._second_replies.answered  # inline: for each reply
                answered[correlation_id] = route, message.reply_to
                if len(answered) > REMEMBERED:
                    self._second_replies.renew()

    def _receive_other(self, message: Delivered) -> None:
        """Take a reply that is not to a call. Replies of two workers break a stream."""
        stream = self._pending.streams.get(message.correlation_id)
        if stream is None:
            self._receive_shared(message)
        elif message.user_id != stream.sender.callee:
            self._security_log.refuse_sender("reply", stream.route, message.user_id)
        else:
            worker = message.reply_to
            first = stream.worker = worker if stream.worker is None else stream.worker
            if worker != first:  # its numbers break the stream
                self._second_replies.write(stream.route, first, worker)
            stream.put(reply_too_large() if message.oversized else message)

    def _receive_shared(self, message: Delivered) -> None:
        """Take the reply to a broadcast or the answer to a probe; each process may send one."""
        correlation_id, sender = message.correlation_id, message.user_id
        broadcast = self._pending.broadcasts.get(correlation_id)
        route = broadcast[0] if broadcast else self._lost_calls.probed(correlation_id)
        if not route:
            self._second_replies.check(correlation_id, message)
        elif sender != owner(route):
            self._security_log.refuse_sender("reply", route, sender)
        elif message.oversized or len(message.body) > _MAX_SHARED_REPLY:
            return
        elif broadcast:
            if len(broadcast[1]) < _MAX_SHARED_REPLIES:
                broadcast[1].append(message.body)
        else:
            self._lost_calls.on_answer(correlation_id, message.body)
