"""The message bus: typed calls and events between services."""

from postbus.bus.v1 import Event, Reply, Request
from shared.messagebus.bus import EventHandler, Following, MessageBus, RpcHandler, Subscription
from shared.messagebus.client import ServiceChannel, call_method, publish
from shared.messagebus.dispatch import Dispatcher
from shared.messagebus.envelope import Call
from shared.messagebus.patterns import EventPattern, MessagePattern

__all__ = [
    "Call",
    "Dispatcher",
    "Event",
    "EventHandler",
    "EventPattern",
    "Following",
    "MessageBus",
    "MessagePattern",
    "Reply",
    "Request",
    "RpcHandler",
    "ServiceChannel",
    "Subscription",
    "call_method",
    "publish",
]
