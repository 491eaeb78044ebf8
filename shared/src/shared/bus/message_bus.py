"""The interface and guarantees of a transport: RabbitMQ, or memory. One test suite covers both."""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from postbus.bus.v1 import Event
from shared.bus.call import Call
from shared.bus.reply import CallResult
from shared.outbox.outbox import EncodedEvent
from shared.security_log import SecurityLog

__all__ = [
    "CREDIT",
    "DELAYS",
    "KEPT_SECONDS",
    "EventHandler",
    "Failure",
    "MessageBus",
    "RpcHandler",
    "StreamSubscription",
    "Subscription",
    "require_kept",
]

RpcHandler = Callable[[str, bytes, str], Awaitable[bytes] | AsyncGenerator[bytes, None]]
"""Takes a route, an encoded Request, and the name of the service that calls, verified by the
transport. Returns an encoded Reply, or a stream of replies that ends with `completed` or `error`.
Never raises."""

CREDIT: Final = 32
"""Replies of a stream that may be in flight."""

DELAYS: Final = (1.0, 5.0, 30.0, 120.0, 600.0)
"""Seconds before each retry of an event; after the last one it is a dead letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The failure of a consumer. The event is retried, or becomes a dead letter."""

    reason: str
    """The reason, as in ServiceError."""
    message: str
    retry: bool
    """Whether a retry may succeed; else the event becomes a dead letter immediately."""
    dependency_down: bool = False
    """Whether a dependency is unavailable. The event is then retried without limit; over RabbitMQ
    it is held, and its queue pauses, until the dependency returns."""

    def delay(self, attempt: int, delays: Sequence[float]) -> float | None:
        """Return the seconds before the retry after `attempt` (from 1), None for a dead letter."""
        if not self.retry or not delays or (attempt > len(delays) and not self.dependency_down):
            return None
        return delays[min(attempt, len(delays)) - 1]


EventHandler = Callable[[bytes], Awaitable[Failure | None]]
"""Takes an encoded Event and processes it once. Returns the failure, None for success, and never
raises."""


class Subscription(Protocol):
    """A running subscription, or a running server of calls."""

    async def cancel(self) -> None:
        """Stop receiving messages. Handlers that run are finished first."""


KEPT_SECONDS: Final = 3600
"""Shortest time for which a stream keeps events."""


def require_kept(seconds: float) -> None:
    """Raise ValueError if streams do not keep events for `seconds`."""
    if seconds > KEPT_SECONDS:
        raise ValueError(f"streams keep events for {KEPT_SECONDS} seconds, not for {seconds}")


class StreamSubscription(Subscription, Protocol):
    """A running subscription to a stream of events."""

    @property
    def complete(self) -> bool:
        """Whether the handler has processed all past events.

        The value does not change while the broker is unavailable. After a reconnect the past events
        are read again before the first call is sent or served; the value is False only if that
        takes too long.
        """


class MessageBus(Protocol):
    """Calls and serves methods, publishes and subscribes to events. Safe for concurrent use."""

    incidents: Counter[str]
    """Number of incidents of the process since the start, by name, such as `consumer.paused`;
    docs/operations.md lists them."""
    security_log: SecurityLog
    """The security log of the process, which has the messages that the bus refuses."""

    @property
    def ready(self) -> bool:
        """Whether the broker is connected."""

    @property
    def warning(self) -> str:
        """A fault at the broker that an operator must correct, in a sentence; empty for none.

        It was found in the last minute: two queues serve one method.
        """

    def call(self, route: str, call: Call) -> Coroutine[Any, Any, CallResult]:
        """Send `call` to a server of `route` and return the result in its reply.

        Raises ServiceError: the error in the reply; UNAVAILABLE with reason NO_ROUTE immediately if
        no worker serves the route, NOT_CONNECTED immediately if the broker is unavailable,
        CONNECTION_LOST if the connection breaks after the call was sent; WORKER_LOST within two
        seconds after the last worker of the route has died; DEADLINE_EXCEEDED at the deadline.
        """

    def stream(self, route: str, call: Call) -> AsyncGenerator[bytes, None]:
        """Send `call` to a server of `route` and yield the payload of each reply.

        Raises like `call`. Closing the generator early cancels the call at the server, if it is
        connected.
        """

    async def broadcast(self, route: str, call: Call) -> list[bytes]:
        """Call every process that serves `route`, a method of the package postbus.bus.

        Returns the payloads of the replies that arrive before the call's deadline.
        """

    async def publish(self, event: Event) -> None:
        """Publish `event`, and return once a queue has stored it.

        UNAVAILABLE with reason EVENT_UNROUTED if there is none: not even the stream of all events.
        """

    async def publish_encoded(self, event: EncodedEvent) -> None:
        """Publish an event as the outbox stores it: the broker receives the same bytes."""

    async def serve(
        self, queue: str, routes: Sequence[str], handler: RpcHandler, *, concurrency: int = 64
    ) -> Subscription:
        """Handle calls of `routes` by `handler`, at most `concurrency` at the same time.

        Each route has a queue of its own, named after `queue` and the route; all servers of one
        `queue` share the calls of a route that they serve. A call is acknowledged after its reply
        is sent.
        """

    async def subscribe(
        self,
        types: Sequence[str],
        handler: EventHandler,
        *,
        queue: str | None = None,
        on_gap: Callable[[], None] | None = None,
    ) -> Subscription:
        """Pass events of `types` to `handler` from now on.

        A failed event is retried with growing delays and finally becomes a dead letter of the
        queue. Its retries do not delay other events. While a dependency is unavailable, a named
        queue pauses: no more events are taken, and those that failed are handled within a second of
        its return.
        A named `queue` is durable and shared by all its subscribers. Without a name the queue
        belongs to this subscription and is deleted with it or with the connection; `on_gap` is
        called after a reconnect, because events may have been missed.
        """

    async def read_stream(
        self, stream: str, types: Sequence[str], handler: EventHandler, *, seconds: float
    ) -> StreamSubscription:
        """Pass events of `types` to `handler`: the events of the last `seconds`, then new ones.

        The events are passed one at a time in the order of publication, without gaps; some are
        passed repeatedly. The result of the handler is ignored. The named `stream` is durable,
        shared by all its readers in this service, and has the events since it was first read.
        Returns once the past events are processed, or after a second if the stream is unavailable;
        see StreamSubscription.complete. Raises ValueError if `seconds` is more than KEPT_SECONDS.
        """
