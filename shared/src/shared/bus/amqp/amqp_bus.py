"""The bus over RabbitMQ: connected again and again.

aio-pika's robust connection restores topology by rules of its own, and loses exclusive queues and
cancelled consumers on the way. Here plain connections live in a `Session`; when one ends, every
pending call fails at once, and a new session serves and subscribes anew.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import structlog
from pydantic import SecretStr

from postbus.bus.v1 import Event
from shared.bus.amqp import topology
from shared.bus.amqp.broker_connection import BROKER_ERRORS, Plane, broker_errors
from shared.bus.amqp.broker_session import Session
from shared.bus.amqp.event_consumer import EventConsumer
from shared.bus.amqp.queue_consumer import Endpoint
from shared.bus.amqp.rpc_server import RpcServer
from shared.bus.amqp.stream_follower import StreamFollower
from shared.bus.envelope import Call, not_connected
from shared.bus.message_bus import DELAYS, EventHandler, RpcHandler, require_kept
from shared.outbox.outbox import EncodedEvent

__all__ = ["AmqpBus", "connect"]

_log = structlog.get_logger()
_FIRST_DELAY: Final = 0.1
_LAST_DELAY: Final = 2.0
_STABLE_SECONDS: Final = 5.0
"""A connection that lived so long is tried again soon, a shorter one ever later."""


@asynccontextmanager
async def connect(
    url: SecretStr, name: str, plane: Plane = "frames", *, delays: Sequence[float] = DELAYS
) -> AsyncIterator["AmqpBus"]:
    """Open a bus under the connection name `name`, and close it at the end.

    `plane` says who carries the messages: our own frames, or aio-pika. `delays` are the seconds
    between the tries of an event.

    Returns at once, connected or not: the bus connects in the background, and again whenever the
    connection is lost.
    """
    bus = AmqpBus(url, name, plane, delays)
    task = asyncio.create_task(bus.run())
    try:
        yield bus
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class AmqpBus:
    """A MessageBus over one session at a time."""

    def __init__(self, url: SecretStr, name: str, plane: Plane, delays: Sequence[float]) -> None:
        self._url = url
        self._name = name
        self._plane: Plane = plane
        self._delays = delays
        self._session: Session | None = None
        self._connected = asyncio.Event()
        self._endpoints: list[Endpoint] = []

    @property
    def ready(self) -> bool:
        """Whether the broker is connected and takes messages."""
        return self._session is not None and self._session.ready

    async def wait_ready(self) -> None:
        """Return once the broker is connected."""
        await self._connected.wait()

    def call(self, route: str, call: Call) -> Coroutine[Any, Any, bytes]:
        """See MessageBus.call."""
        if self._session is None:
            raise not_connected()
        return self._session.call(route, call)

    def stream(self, route: str, call: Call) -> AsyncGenerator[bytes, None]:
        """See MessageBus.stream."""
        return self._require_session().stream(route, call)

    async def broadcast(self, route: str, call: Call) -> list[bytes]:
        """See MessageBus.broadcast."""
        return await self._require_session().broadcast(route, call)

    async def publish(self, event: Event) -> None:
        """See MessageBus.publish."""
        await self.publish_encoded(EncodedEvent.of(event))

    async def publish_encoded(self, event: EncodedEvent) -> None:
        """See MessageBus.publish_encoded."""
        await self._require_session().publish(event)

    async def serve(
        self, queue: str, routes: Sequence[str], handler: RpcHandler, *, concurrency: int = 64
    ) -> "_AmqpSubscription":
        """See MessageBus.serve; waits for the broker."""
        return await self._start(RpcServer(queue, routes, handler, concurrency))

    async def subscribe(
        self,
        types: Sequence[str],
        handler: EventHandler,
        *,
        queue: str | None = None,
        on_gap: Callable[[], None] | None = None,
    ) -> "_AmqpSubscription":
        """See MessageBus.subscribe; waits for the broker."""
        return await self._start(EventConsumer(queue, types, handler, on_gap, self._delays))

    async def follow(
        self, stream: str, types: Sequence[str], handler: EventHandler, *, seconds: float
    ) -> "_AmqpFollowing":
        """See MessageBus.follow; waits for the broker."""
        require_kept(seconds)
        follower = StreamFollower(topology.event_stream(stream, types), handler, seconds)
        await self._start(follower)
        return _AmqpFollowing(self._endpoints, follower)

    def _require_session(self) -> Session:
        if self._session is None:
            raise not_connected()
        return self._session

    async def _start(self, endpoint: Endpoint) -> "_AmqpSubscription":
        self._endpoints.append(endpoint)
        while not endpoint.active:
            await self._connected.wait()
            async with endpoint.starting:
                await self._start_now(endpoint)
            if not endpoint.active:
                await asyncio.sleep(_FIRST_DELAY)
        return _AmqpSubscription(self._endpoints, endpoint)

    async def _start_now(self, endpoint: Endpoint) -> None:
        session = self._session
        if session is None or endpoint.active:
            return
        try:
            with broker_errors():
                await endpoint.start(session)
        except BROKER_ERRORS as error:
            _log.warning("bus.not_started", queue=endpoint.queue_name, error=repr(error))
            self._connected.clear()
            session.fail()

    async def run(self) -> None:
        """Keep a session open until cancelled."""
        url, delay = self._url.get_secret_value(), _FIRST_DELAY
        while True:
            try:
                with broker_errors():
                    began = time.monotonic()
                    await self._run_session(url)
                    _log.warning("bus.connection_lost")
                    if time.monotonic() - began > _STABLE_SECONDS:
                        delay = _FIRST_DELAY
            except BROKER_ERRORS as error:
                _log.warning("bus.not_connected", error=repr(error), retry_in=delay)
            finally:
                self._session = None
                self._connected.clear()
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
            delay = min(delay * 2, _LAST_DELAY)

    async def _run_session(self, url: str) -> None:
        async with Session.open(url, self._name, self._plane) as session:
            await self._restart_endpoints(session)
            self._session = session
            self._connected.set()
            _log.info("bus.connected")
            await session.lost.wait()
            self._session = None
            self._connected.clear()

    async def _restart_endpoints(self, session: Session) -> None:
        for endpoint in list(self._endpoints):
            async with endpoint.starting:
                if endpoint in self._endpoints:  # not cancelled meanwhile
                    await endpoint.start(session)


class _AmqpSubscription:
    def __init__(self, endpoints: list[Endpoint], endpoint: Endpoint) -> None:
        self._endpoints = endpoints
        self._endpoint = endpoint

    async def cancel(self) -> None:
        """See Subscription.cancel."""
        if self._endpoint in self._endpoints:
            self._endpoints.remove(self._endpoint)
            async with self._endpoint.starting:
                with suppress(*BROKER_ERRORS), broker_errors():
                    await self._endpoint.stop()


class _AmqpFollowing(_AmqpSubscription):
    def __init__(self, endpoints: list[Endpoint], follower: StreamFollower) -> None:
        super().__init__(endpoints, follower)
        self._follower = follower

    @property
    def complete(self) -> bool:
        """See Following.complete."""
        return self._follower.complete
