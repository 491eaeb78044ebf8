"""What a transport promises: the same for RabbitMQ and for memory, tested by one suite."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from postbus.bus.v1 import Event
from shared.bus.envelope import Call
from shared.outbox.outbox import EncodedEvent

__all__ = [
    "CREDIT",
    "DELAYS",
    "KEPT_SECONDS",
    "EventHandler",
    "Failure",
    "Following",
    "MessageBus",
    "RpcHandler",
    "Subscription",
    "require_kept",
]

RpcHandler = Callable[[str, bytes], Awaitable[bytes] | AsyncGenerator[bytes, None]]
"""Takes a route and an encoded Request, returns an encoded Reply, or a stream of them whose last is
`completed` or `error`. Never raises."""

CREDIT: Final = 32
"""Replies of a stream that may be on their way."""

DELAYS: Final = (1.0, 5.0, 30.0, 120.0, 600.0)
"""Seconds between the tries of an event; after the last one it is a dead letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an event was not dealt with."""

    reason: str
    """UPPER_SNAKE_CASE, as of a ServiceError."""
    message: str
    retry: bool
    """Whether it may go better another time; else it is a dead letter at once."""
    dependency_down: bool = False
    """Whether a part is away that the consumer needs: it is then tried for ever."""

    def delay(self, attempt: int, delays: Sequence[float]) -> float | None:
        """Return the seconds until the next try after `attempt`, counted from 1; None for none."""
        if not self.retry or not delays or (attempt > len(delays) and not self.dependency_down):
            return None
        return delays[min(attempt, len(delays)) - 1]


EventHandler = Callable[[bytes], Awaitable[Failure | None]]
"""Takes an encoded Event, tries once to deal with it, and returns why it could not. Never raises.
"""


class Subscription(Protocol):
    """Events flowing to a handler."""

    async def cancel(self) -> None:
        """Stop the flow. Events that the handler has begun are finished first."""


KEPT_SECONDS: Final = 3600
"""How long a stream keeps events at least."""


def require_kept(seconds: float) -> None:
    """Raise ValueError if a stream does not keep events for so many seconds."""
    if seconds > KEPT_SECONDS:
        raise ValueError(f"streams keep events for {KEPT_SECONDS} seconds, not for {seconds}")


class Following(Subscription, Protocol):
    """Events of a stream flowing to a handler."""

    @property
    def complete(self) -> bool:
        """Whether the handler has had all events that were published until now.

        It stays as it was while the broker is unavailable. On its return past events are read again
        before the first call is sent or served, and this is False only if that takes too long.
        """


class MessageBus(Protocol):
    """Calls methods, serves them, publishes events and hears of them. Safe for concurrent use."""

    @property
    def ready(self) -> bool:
        """Whether the broker can be reached at this moment."""

    def call(self, route: str, call: Call) -> Coroutine[Any, Any, bytes]:
        """Send `call` to whoever serves `route` and return the payload of the reply.

        `call.replayed` then tells whether the operation had been done before.
        Raises ServiceError: what the service answered; UNAVAILABLE with reason NO_ROUTE at once if
        nobody serves the route, NOT_CONNECTED at once if the broker is away, CONNECTION_LOST if it
        goes away meanwhile; DEADLINE_EXCEEDED at the call's deadline.
        """

    def stream(self, route: str, call: Call) -> AsyncGenerator[bytes, None]:
        """Send `call` to whoever serves `route` and yield the payload of each reply.

        Raises like `call`. Closing the generator before its end cancels the call at the other side,
        as far as it can be reached.
        """

    async def broadcast(self, route: str, call: Call) -> list[bytes]:
        """Ask every process that serves `route`, a method of the package postbus.bus.

        Returns the payloads of the replies that came before the call's deadline.
        """

    async def publish(self, event: Event) -> None:
        """Publish `event`, and return when the broker has confirmed it."""

    async def publish_encoded(self, event: EncodedEvent) -> None:
        """Publish an event as the outbox stores it: the broker receives the same bytes."""

    async def serve(
        self, queue: str, routes: Sequence[str], handler: RpcHandler, *, concurrency: int = 64
    ) -> Subscription:
        """Answer calls of `routes` with `handler`, at most `concurrency` at once.

        Everyone who serves the same `queue` shares its calls. A call is acknowledged after its
        reply is sent.
        """

    async def subscribe(
        self,
        types: Sequence[str],
        handler: EventHandler,
        *,
        queue: str | None = None,
        on_gap: Callable[[], None] | None = None,
    ) -> Subscription:
        """Pass events of `types` to `handler`, beginning when this returns.

        What fails is tried again with growing delays, while others go on, and becomes a dead letter
        of the queue in the end.
        A named `queue` is durable and shared by everyone who subscribes with the name. Without a
        name the queue is this subscription's own and goes with it or with the connection; `on_gap`
        is called when events flow again after some may have been missed.
        """

    async def follow(
        self, stream: str, types: Sequence[str], handler: EventHandler, *, seconds: float
    ) -> Following:
        """Pass events of `types` to `handler`: those of the last `seconds` first, then new ones.

        The events come one after the other in the order of publication, without a gap, some of them
        more than once. What the handler returns is ignored. The named `stream` is durable, shared
        by all its followers, and has the events since it was first followed. Returns once the past
        events are handled, or after a second if the stream is unavailable: see Following.complete.
        Raises ValueError if `seconds` is more than KEPT_SECONDS.
        """
