"""Takes the control messages of a server: cancellations, credit, broadcasts and probes."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from postbus import reasons
from postbus.bus.v1 import Control
from shared.bus.amqp.declarations import Binding, Queue
from shared.bus.amqp.received_calls import CallKey
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.reply_sender import ReplyChannels
from shared.bus.amqp.stream_credit import StreamCredit
from shared.bus.amqp.topology import exchange
from shared.errors import ServiceError
from shared.security_log import SecurityLog
from shared.wire import decode

__all__ = ["ControlReceiver", "control_queue"]

_MAX_CANCELS: Final = 1024
"""Cancellations of calls that have not arrived yet."""
_MAX_CONTROL: Final = 64 * 2**10
"""Largest control message in bytes; the requests in them are small."""
_MAX_ID: Final = 255
"""Bytes of a correlation id or a reply-to (4.2.5.3)."""


class ControlReceiver:
    """Passes cancellations to `cancel`, broadcasts to `handle` with the calling service, probes to
    `answer`, and credit to the streams.

    Control messages of another service than that of the call are ignored.
    """

    def __init__(
        self,
        replies: ReplyChannels,
        cancel: Callable[[CallKey], None],
        handle: Callable[[Delivered, Control, str], None],
        answer: Callable[[Delivered, Control], None],
        *,
        security_log: SecurityLog,
    ) -> None:
        self.cancelled: OrderedDict[CallKey, None] = OrderedDict()
        """The last cancellations: a cancellation can arrive before its call."""
        self._replies = replies
        self._on_cancel = cancel
        self._handle = handle
        self._answer = answer
        self._security_log = security_log
        self._credits: dict[CallKey, StreamCredit] = {}

    def receive(self, message: Delivered) -> None:
        """Take a control message. A malformed one is logged as refused."""
        try:
            control = _read(message)
        except ServiceError as error:
            self._security_log.refuse_message(message.routing_key, error.reason)
            return
        caller = self._replies.calling_service("control", message, control.reply_to)
        if not caller:
            return
        key = (control.reply_to, control.correlation_id)
        if control.request:
            self._handle(message, control, caller)
        elif control.cancel:
            self._cancel(key)
        elif control.waiting_ms:
            self._answer(message, control)
        elif credit := self._credits.get(key):
            credit.grant(control.credit)

    def _cancel(self, key: CallKey) -> None:
        self.cancelled[key] = None
        if len(self.cancelled) > _MAX_CANCELS:
            self.cancelled.popitem(last=False)
        self._on_cancel(key)

    @contextmanager
    def credit(self, key: CallKey) -> Iterator[StreamCredit]:
        """Return the credit of a stream, to which the caller can add until the end of the block."""
        credit = self._credits[key] = StreamCredit()
        try:
            yield credit
        finally:
            if self._credits.get(key) is credit:
                del self._credits[key]


def _read(message: Delivered) -> Control:
    """Return a control message; INVALID_ARGUMENT if it is malformed or too large."""
    if message.oversized or len(message.body) > _MAX_CONTROL:
        raise ServiceError(reasons.CONTROL_TOO_LARGE, "More than 64 KiB.")
    control = decode(Control, message.body)
    if any(len(each.encode()) > _MAX_ID for each in (control.reply_to, control.correlation_id)):
        raise ServiceError(reasons.ID_TOO_LONG, "More than 255 bytes.")
    return control


def control_queue(name: str, service: str, routes: Sequence[str]) -> Queue:
    """Return the exclusive queue for the control messages of a server.

    Credit has its name as routing key, the other messages have the route of their call.
    """
    bindings = [Binding(name, exchange("control", service), key) for key in (name, *routes)]
    return Queue(name=name, arguments={}, bindings=bindings, exclusive=True, auto_delete=True)
