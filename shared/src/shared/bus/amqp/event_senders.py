"""Compares the sender of an event with the service that owns it."""

from collections.abc import Collection
from typing import Final

from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.topology import OLD_DELAYS, owner
from shared.errors import ServiceError
from shared.outbox.outbox import EncodedEvent
from shared.security_log import SecurityLog

__all__ = ["event_owner", "is_from_owner", "is_genuine", "log_forged_event"]

_MAX_TYPE: Final = 255
"""Characters of the type of an event: those of a routing key (4.2.5.3)."""


def is_from_owner(message: Delivered) -> bool:
    """Return whether the service that owns the event in a message has sent it to its exchange.

    RabbitMQ validates the user id of a message.
    """
    return message.user_id == event_owner(message) and not message.dead_lettered


def is_genuine(message: Delivered, service: str, *, queue: str, types: Collection[str]) -> bool:
    """Return whether the owner of the event has sent it, or `service` to itself (a retry).

    Messages of delay queues from before the services had accounts have no user id, but the name of
    the `queue` as routing key: no exchange of events leads there by this key, and no service may
    write to the default exchange.
    """
    if message.user_id == service:
        return True
    if message.user_id:
        return is_from_owner(message)
    if not queue or message.routing_key != queue:
        return False
    old = str(message.headers.get("x-first-death-queue", ""))
    return old.startswith(OLD_DELAYS) and _event_type(message) in types


def _event_type(message: Delivered) -> str:
    try:
        return EncodedEvent.read(message.body).type
    except ServiceError:
        return ""


def event_owner(message: Delivered) -> str:
    """Return the service that owns the event in a message."""
    try:
        type_ = EncodedEvent.read(message.body).type
    except ServiceError:  # the handler refuses it
        type_ = message.routing_key
    return owner(type_[:_MAX_TYPE])  # `owner` keeps the names in memory


def log_forged_event(log: SecurityLog, message: Delivered) -> None:
    """Log an event that another service than its owner has sent."""
    log.refuse_sender("event", message.routing_key, message.user_id)
