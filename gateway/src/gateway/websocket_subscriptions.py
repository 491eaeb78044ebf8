"""The subscriptions of one WebSocket client to events."""

from collections.abc import Iterable

from gateway.event_subscriptions import CLIENT_EVENTS
from gateway.services import Services
from gateway.websocket_frames import EVENT_SUFFIX, event_prefix
from gateway.websocket_sender import FrameSender
from postbus import reasons
from shared.errors import ServiceError

__all__ = ["SocketSubscriptions"]


class SocketSubscriptions:
    """The subscriptions of an authenticated client."""

    __slots__ = ("_by_id", "_sender", "_services", "_user_id")

    def __init__(self, services: Services, sender: FrameSender, *, user_id: str) -> None:
        self._services = services
        self._sender = sender
        self._user_id = user_id
        self._by_id: dict[str, _Subscription] = {}

    def add(self, id_: str, types: Iterable[str]) -> None:
        """Send the events of these types under the id of the subscription.

        Raises INVALID_ARGUMENT for an unknown type, ALREADY_EXISTS for an id or a type that has a
        subscription, RESOURCE_EXHAUSTED beyond the limits, UNAVAILABLE if the gateway receives no
        events.
        """
        names = set(types)
        if not names <= CLIENT_EVENTS.keys():
            raise ServiceError(
                reasons.UNKNOWN_EVENT,
                "Clients cannot subscribe to one of these event types.",
            )
        self._require_new(id_, names)
        self._services.socket_quotas.subscriptions.take(self._user_id)
        subscription = self._by_id[id_] = _Subscription(self._sender, id_, names)
        try:
            for name in names:
                self._services.subscriptions.subscribe(name, subscription, user_id=self._user_id)
        except ServiceError:
            self._end(id_)
            raise

    def _require_new(self, id_: str, names: set[str]) -> None:
        limit = self._services.socket_limits.subscriptions_per_socket
        if id_ in self._by_id:
            raise ServiceError(
                reasons.SUBSCRIPTION_ID_TAKEN,
                "This WebSocket has a subscription with this id.",
            )
        if len(self._by_id) >= limit:
            raise ServiceError(
                reasons.TOO_MANY_SUBSCRIPTIONS,
                f"A WebSocket has at most {limit} subscriptions.",
            )
        if any(names & subscription.types for subscription in self._by_id.values()):
            raise ServiceError(
                reasons.ALREADY_SUBSCRIBED,
                "This WebSocket has a subscription to an event of these types.",
            )

    def remove(self, id_: str) -> None:
        """End a subscription; NOT_FOUND if there is none with this id."""
        if id_ not in self._by_id:
            raise ServiceError(reasons.UNKNOWN_SUBSCRIPTION, "There is no such subscription.")
        self._end(id_)

    def remove_all(self) -> None:
        """End all subscriptions."""
        for id_ in tuple(self._by_id):
            self._end(id_)

    def _end(self, id_: str) -> None:
        self._services.subscriptions.unsubscribe(self._by_id.pop(id_))
        self._services.socket_quotas.subscriptions.release(self._user_id)


class _Subscription:
    """A Listener that sends events under the id of its subscription."""

    __slots__ = ("_prefix", "_sender", "types")

    def __init__(self, sender: FrameSender, id_: str, types: set[str]) -> None:
        self._sender = sender
        self._prefix = event_prefix(id_)
        self.types = types

    def deliver(self, delivery: bytes) -> None:
        self._sender.send(self._prefix, delivery, EVENT_SUFFIX)

    def interrupt(self) -> None:
        self._sender.close(ServiceError(reasons.EVENTS_INTERRUPTED, "Events may have been missed."))
