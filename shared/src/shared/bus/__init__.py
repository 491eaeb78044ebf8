"""The message bus: calls and events between services, with the types of the contract."""

from shared.bus.call import Call
from shared.bus.client import ServiceChannel, call_method, publish, typed_handler
from shared.bus.decorators import EventPattern, MessagePattern
from shared.bus.dispatch import Dispatcher
from shared.bus.message_bus import MessageBus, StreamSubscription, Subscription
from shared.bus.reply import CallResult

__all__ = [
    "Call",
    "CallResult",
    "Dispatcher",
    "EventPattern",
    "MessageBus",
    "MessagePattern",
    "ServiceChannel",
    "StreamSubscription",
    "Subscription",
    "call_method",
    "publish",
    "typed_handler",
]
