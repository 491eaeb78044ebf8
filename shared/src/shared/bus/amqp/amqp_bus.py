"""The bus over RabbitMQ, which reconnects by itself.

aio-pika's robust connection restores the topology by rules of its own, and loses exclusive queues
and cancelled consumers. Here a plain `BrokerSession` is used until it is lost; then every pending
call fails immediately, and a new session starts all servers and consumers again.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import structlog
from pydantic import SecretStr
from yarl import URL

from postbus.bus.v1 import Event
from postbus.registry import EVENTS
from shared import tasks
from shared.bus.amqp import topology
from shared.bus.amqp.broker_addresses import broker_addresses
from shared.bus.amqp.broker_errors import BROKER_ERRORS, broker_errors
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.event_consumer import EventConsumer
from shared.bus.amqp.rpc_server import RpcServer
from shared.bus.amqp.second_replies import SecondReplies
from shared.bus.amqp.stream_reader import StreamReader
from shared.bus.amqp.topology_watch import KeptEvents, Watched, watch
from shared.bus.envelope import Call, CallResult, not_connected
from shared.bus.message_bus import DELAYS, EventHandler, RpcHandler, require_kept
from shared.outbox.outbox import EncodedEvent
from shared.security_log import SecurityLog

__all__ = ["AmqpBus", "connect"]

_log = structlog.get_logger()
_FIRST_DELAY: Final = 0.1
"""Seconds before the first attempt to reconnect; the delay doubles with each failed attempt."""
_LAST_DELAY: Final = 2.0
"""Longest delay between two attempts, in seconds."""
_STABLE_SECONDS: Final = 5.0
"""The delay starts again from the first one after a connection that lasted longer."""
_DELETION_SECONDS: Final = 1.0
"""Time after the loss of a node of a cluster in which a worker declares no queue for calls.

The other nodes delete the queues of that node, by name, and callers learn that their calls in these
queues are lost: no process of the worker is bound.
"""

_MAX_ERROR: Final = 500
"""Characters of an error in the log."""
_START_SECONDS: Final = 1.0
"""Time between two attempts to start consumers."""

_Consumer = RpcServer | EventConsumer | StreamReader


@asynccontextmanager
async def connect(
    url: SecretStr, service: str, *, delays: Sequence[float] = DELAYS, keep_events: bool = False
) -> AsyncIterator["AmqpBus"]:
    """Open the bus of a service, and close it at the end.

    async with connect(settings.amqp_url, "posts") as bus:
        await bus.wait_ready()
        await bus.publish(event)

    The account in the URL has the name of the service, or RabbitMQ's tag `impersonator`: each
    message names its sender, and the broker refuses another name than the account's. `delays` are
    the seconds between the attempts to handle an event. With `keep_events`, the process keeps the
    stream of the events of all services. Returns immediately: the bus connects in the background,
    and again whenever the connection is lost.
    """
    bus = AmqpBus(url, service, delays, keep_events=keep_events)
    task = asyncio.create_task(bus.run())
    try:
        yield bus
    finally:
        await tasks.end(task)


class AmqpBus:
    """A MessageBus over one broker session at a time."""

    def __init__(
        self, url: SecretStr, service: str, delays: Sequence[float], *, keep_events: bool = False
    ) -> None:
        self.security_log = SecurityLog()
        self._brokers = broker_addresses(url.get_secret_value())
        self._service = service
        owners = {service, *map(topology.owner, EVENTS)}
        self._kept = [KeptEvents(owners)] if keep_events else []
        self._delays = delays
        self.incidents: Counter[str] = Counter()
        self._second_replies = SecondReplies(self.incidents)
        self._session: BrokerSession | None = None
        self._connected = asyncio.Event()
        self._consumers: list[_Consumer] = []
        self._lost_at = -_DELETION_SECONDS
        """When the last session was lost, by `time.monotonic()`."""

    @property
    def ready(self) -> bool:
        """Whether the broker is connected and accepts messages."""
        return self._session is not None and self._session.ready

    @property
    def warning(self) -> str:
        """See MessageBus.warning."""
        return self._second_replies.warning

    async def wait_ready(self) -> None:
        """Return once the broker is connected."""
        await self._connected.wait()

    def call(self, route: str, call: Call) -> Coroutine[Any, Any, CallResult]:
        """See MessageBus.call."""
        if self._session is None:
            raise not_connected()
        return self._session.rpc.call(route, call)

    def stream(self, route: str, call: Call) -> AsyncGenerator[bytes, None]:
        """See MessageBus.stream."""
        return self._require_session().rpc.stream(route, call)

    async def broadcast(self, route: str, call: Call) -> list[bytes]:
        """See MessageBus.broadcast."""
        return await self._require_session().rpc.broadcast(route, call)

    async def publish(self, event: Event) -> None:
        """See MessageBus.publish."""
        await self.publish_encoded(EncodedEvent.of(event))

    async def publish_encoded(self, event: EncodedEvent) -> None:
        """See MessageBus.publish_encoded."""
        await self._require_session().events.publish(event)

    async def serve(
        self, queue: str, routes: Sequence[str], handler: RpcHandler, *, concurrency: int = 64
    ) -> "_AmqpSubscription":
        """See MessageBus.serve. Waits for a connection."""
        return await self._start(RpcServer(queue, routes, handler, concurrency))

    async def subscribe(
        self,
        types: Sequence[str],
        handler: EventHandler,
        *,
        queue: str | None = None,
        on_gap: Callable[[], None] | None = None,
    ) -> "_AmqpSubscription":
        """See MessageBus.subscribe. Waits for a connection."""
        return await self._start(
            EventConsumer(
                queue,
                types,
                handler,
                on_gap=on_gap,
                delays=self._delays,
                incidents=self.incidents,
            )
        )

    async def read_stream(
        self, stream: str, types: Sequence[str], handler: EventHandler, *, seconds: float
    ) -> "_AmqpStreamSubscription":
        """See MessageBus.read_stream. Waits for a connection."""
        require_kept(seconds)
        reader = StreamReader(stream, types, handler, seconds=seconds)
        await self._start(reader)
        return _AmqpStreamSubscription(self._consumers, reader)

    def _require_session(self) -> BrokerSession:
        if self._session is None:
            raise not_connected()
        return self._session

    async def _start(self, consumer: _Consumer) -> "_AmqpSubscription":
        self._consumers.append(consumer)
        await self._connected.wait()
        if session := self._session:
            await self._start_in(session, consumer)
        while not consumer.active:  # `_watch` tries again  # noqa: ASYNC110
            await asyncio.sleep(_FIRST_DELAY)
        return _AmqpSubscription(self._consumers, consumer)

    async def _start_in(self, session: BrokerSession, consumer: _Consumer) -> None:
        """Start a consumer unless it is cancelled or active. A failure is logged."""
        async with consumer.starting:
            if consumer not in self._consumers or consumer.active or session.lost.is_set():
                return
            try:
                with broker_errors():
                    await consumer.start(session)
            except BROKER_ERRORS as error:
                _log.warning("consumer.not_started", queue=consumer.queue_name, error=repr(error))

    async def run(self) -> None:
        """Keep a session open until cancelled.

        Each attempt tries the nodes of the broker in random order, the next one as soon as one
        fails; the delay begins when all have failed.
        """
        delay = _FIRST_DELAY
        while True:
            for url in random.sample(self._brokers, len(self._brokers)):
                began = time.monotonic()
                if await self._try_broker(url, delay):
                    if time.monotonic() - began > _STABLE_SECONDS:
                        delay = _FIRST_DELAY
                    break
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
            delay = min(delay * 2, _LAST_DELAY)

    async def _try_broker(self, url: URL, delay: float) -> bool:
        """Keep a session with one node open; return whether it could be opened."""
        try:
            with broker_errors():
                await self._run_session(url)
        except Exception as error:  # noqa: BLE001  # a server of another kind, or an option of the address, makes aiormq raise anything
            _log.warning(
                "bus.not_connected",
                broker=_name(url),
                setting="POSTBUS_AMQP_URL",
                error=repr(error)[:_MAX_ERROR],
                retry_in=delay,
            )
            return False
        finally:
            self._session = None
            self._connected.clear()
        self._lost_at = time.monotonic()
        return True

    async def _run_session(self, url: URL) -> None:
        async with BrokerSession.open(
            str(url), self._service, self.security_log, self._second_replies
        ) as session:
            await self._start_all(session, StreamReader)
            await self._outlast_deletions(session)
            # calls first, but not before the revocations
            await self._start_all(session, RpcServer)
            self._session = session
            self._connected.set()
            _log.info("bus.connected")
            watching = [
                asyncio.create_task(self._keep_started(session)),
                asyncio.create_task(watch(session, self._watched)),
            ]
            for task in watching:
                task.add_done_callback(partial(_end_watch, session))
            try:
                await session.lost.wait()
                reason = session.close_reason
                _log.warning("bus.connection_lost", broker=_name(url), reason=reason)
            finally:
                self._session = None
                self._connected.clear()
                await tasks.end(*watching)

    async def _outlast_deletions(self, session: BrokerSession) -> None:
        """Wait until the queues of a lost node are deleted, unless this process serves no calls."""
        if len(self._brokers) > 1 and any(isinstance(each, RpcServer) for each in self._consumers):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lost_at + _DELETION_SECONDS - time.monotonic()):
                    await session.lost.wait()

    async def _start_all(self, session: BrokerSession, kind: type[_Consumer]) -> None:
        ours = [consumer for consumer in self._consumers if isinstance(consumer, kind)]
        await asyncio.gather(*(self._start_in(session, consumer) for consumer in ours))

    async def _keep_started(self, session: BrokerSession) -> None:
        """Start the consumers, and retry failed starts."""
        while True:
            for kind in (RpcServer, EventConsumer):
                await self._start_all(session, kind)
            await asyncio.sleep(_START_SECONDS)

    def _watched(self) -> list[Watched]:
        return [*self._consumers, *self._kept]


class _AmqpSubscription:
    def __init__(self, consumers: list[_Consumer], consumer: _Consumer) -> None:
        self._consumers = consumers
        self._consumer = consumer

    async def cancel(self) -> None:
        """See Subscription.cancel."""
        if self._consumer in self._consumers:
            self._consumers.remove(self._consumer)
            async with self._consumer.starting:
                with suppress(*BROKER_ERRORS), broker_errors():
                    await self._consumer.stop()


class _AmqpStreamSubscription(_AmqpSubscription):
    def __init__(self, consumers: list[_Consumer], reader: StreamReader) -> None:
        super().__init__(consumers, reader)
        self._reader = reader

    @property
    def complete(self) -> bool:
        """See StreamSubscription.complete."""
        return self._reader.complete


def _end_watch(session: BrokerSession, watching: "asyncio.Task[None]") -> None:
    """End a session that is not watched any more."""
    if not watching.cancelled() and (error := watching.exception()):
        _log.error("bus.watch_failed", exc_info=error)
        session.mark_lost()


def _name(url: URL) -> str:
    return f"{url.host}:{url.port}"
