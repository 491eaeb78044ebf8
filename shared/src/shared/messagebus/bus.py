"""What a transport promises: the same for RabbitMQ and for memory, tested by one suite."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final, Protocol

from postbus.bus.v1 import Event, Outcome, Reply, Request
from shared.errors import Code, ServiceError
from shared.wire import decode, encode

__all__ = [
    "CREDIT",
    "EventHandler",
    "MessageBus",
    "RpcHandler",
    "Subscription",
    "deadline_exceeded",
    "error_reply",
    "next_payload",
    "not_connected",
    "payload_of",
    "remaining",
    "unavailable",
]

RpcHandler = Callable[[str, bytes], Awaitable[bytes] | AsyncGenerator[bytes, None]]
"""Takes a route and an encoded Request, returns an encoded Reply, or a stream of them whose last is
`completed` or `error`. Never raises."""

CREDIT: Final = 32
"""Replies of a stream that may be on their way."""

EventHandler = Callable[[bytes], Awaitable[bool]]
"""Takes an encoded Event and returns whether it is dealt with; False sends it to the dead letters.
Never raises."""


class Subscription(Protocol):
    """Events flowing to a handler."""

    async def cancel(self) -> None:
        """Stop the flow. Events that the handler has begun are finished first."""


class MessageBus(Protocol):
    """Calls methods, serves them, publishes events and hears of them. Safe for concurrent use."""

    @property
    def ready(self) -> bool:
        """Whether the broker can be reached at this moment."""

    async def call(self, route: str, request: Request) -> bytes:
        """Send `request` to whoever serves `route` and return the payload of the reply.

        Raises ServiceError: what the service answered; UNAVAILABLE with reason NO_ROUTE at once if
        nobody serves the route, NOT_CONNECTED at once if the broker is away, CONNECTION_LOST if it
        goes away meanwhile; DEADLINE_EXCEEDED at the request's deadline.
        """

    def stream(self, route: str, request: Request) -> AsyncGenerator[bytes, None]:
        """Send `request` to whoever serves `route` and yield the payload of each reply.

        Raises like `call`. Closing the generator before its end cancels the call at the other side,
        as far as it can be reached.
        """

    async def publish(self, event: Event) -> None:
        """Hand `event` to the broker, and return once it has taken charge of it."""

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

        A named `queue` is durable and shared by everyone who subscribes with the name. Without a
        name the queue is this subscription's own and goes with it or with the connection; `on_gap`
        is called when events flow again after some may have been missed.
        """


def payload_of(reply: bytes) -> bytes:
    """Return the payload of an encoded Reply; raise the error that it carries."""
    message = decode(Reply, reply)
    _raise_error(message)
    return message.payload


def next_payload(reply: bytes, sequence: int) -> bytes | None:
    """Return the payload of a stream's Reply, None at its end; raise the error that it carries.

    One that does not have the number `sequence` breaks the stream: UNAVAILABLE, STREAM_BROKEN.
    """
    message = decode(Reply, reply)
    _raise_error(message)
    if message.sequence != sequence:
        raise unavailable("STREAM_BROKEN", "A part of the answer is missing.", Outcome.UNKNOWN)
    return None if message.is_set("completed") else message.payload


def _raise_error(reply: Reply) -> None:
    if reply.is_set("error"):
        raise ServiceError.from_message(reply.error)


def error_reply(error: ServiceError, trace_id: str = "") -> bytes:
    """Return an encoded Reply that carries `error`."""
    return encode(Reply(error=error.to_message(trace_id)))


def remaining(request: Request) -> float:
    """Return the seconds until the deadline of `request`, negative if it has passed."""
    return request.deadline_unix_ms / 1000 - time.time()


def deadline_exceeded(outcome: int = Outcome.UNKNOWN) -> ServiceError:
    """The error of a call that had no answer in time."""
    return ServiceError(
        Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "No answer in time.", outcome=outcome
    )


def unavailable(reason: str, message: str, outcome: int = Outcome.NO_EFFECT) -> ServiceError:
    """The error of a call that could not be delivered or answered."""
    return ServiceError(Code.UNAVAILABLE, reason, message, retry_after=1, outcome=outcome)


def not_connected() -> ServiceError:
    """The error of a call that was not sent, because the broker is away."""
    return unavailable("NOT_CONNECTED", "The message broker is away.")
