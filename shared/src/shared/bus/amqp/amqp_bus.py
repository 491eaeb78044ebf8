"""The bus over RabbitMQ, which reconnects by itself.

aio-pika's robust connection restores the topology by rules of its own, and loses exclusive queues
and cancelled consumers. Here a plain `BrokerSession` is used until it is lost; then every pending
call fails immediately, and a new session starts all servers and consumers again.
"""

import asyncio
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
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.consumer_starts import (
    ConsumerStarts,
    ConsumerSubscription,
    StreamReaderSubscription,
)
from shared.bus.amqp.event_consumer import EventConsumer
from shared.bus.amqp.queue_consumer import QueueConsumer
from shared.bus.amqp.reconnection import keep_connected, node_name
from shared.bus.amqp.rpc_server import RpcServer
from shared.bus.amqp.second_replies import SecondReplies
from shared.bus.amqp.stream_reader import StreamReader
from shared.bus.amqp.topology_watch import KeptEvents, Watched, watch
from shared.bus.call import Call
from shared.bus.call_errors import not_connected
from shared.bus.message_bus import DELAYS, EventHandler, RpcHandler, require_kept
from shared.bus.reply import CallResult
from shared.outbox.outbox import EncodedEvent
from shared.security_log import SecurityLog

__all__ = ["AmqpBus", "connect"]

_log = structlog.get_logger()
_DELETION_SECONDS: Final = 1.0
"""Time after the loss of a node of a cluster in which a worker declares no queue for calls.

The other nodes delete the queues of that node, by name, and callers learn that their calls in these
queues are lost: no process of the worker is bound.
"""

_POLL_SECONDS: Final = 0.1
"""Time between two checks whether a consumer has started."""


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
        self._consumers: list[QueueConsumer] = []
        self._starts = ConsumerStarts(self._consumers)
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
    ) -> ConsumerSubscription:
        """See MessageBus.serve. Waits for a connection."""
        return await self._start(RpcServer(queue, routes, handler, concurrency))

    async def subscribe(
        self,
        types: Sequence[str],
        handler: EventHandler,
        *,
        queue: str | None = None,
        on_gap: Callable[[], None] | None = None,
    ) -> ConsumerSubscription:
        """See MessageBus.subscribe. Waits for a connection."""
        consumer = EventConsumer(
            queue, types, handler, on_gap=on_gap, delays=self._delays, incidents=self.incidents
        )
        return await self._start(consumer)

    async def read_stream(
        self, stream: str, types: Sequence[str], handler: EventHandler, *, seconds: float
    ) -> StreamReaderSubscription:
        """See MessageBus.read_stream. Waits for a connection."""
        require_kept(seconds)
        reader = StreamReader(stream, types, handler, seconds=seconds)
        await self._start(reader)
        return StreamReaderSubscription(self._consumers, reader)

    def _require_session(self) -> BrokerSession:
        if self._session is None:
            raise not_connected()
        return self._session

    async def _start(self, consumer: QueueConsumer) -> ConsumerSubscription:
        self._consumers.append(consumer)
        await self._connected.wait()
        if session := self._session:
            await self._starts.start(session, consumer)
        while not consumer.active:  # `keep_started` tries again  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        return ConsumerSubscription(self._consumers, consumer)

    async def run(self) -> None:
        """Keep a session open until cancelled."""
        await keep_connected(self._brokers, self._run_session)

    async def _run_session(self, url: URL) -> None:
        """Open a session with a node, and use it until it is lost."""
        async with BrokerSession.open(
            str(url), self._service, self.security_log, self._second_replies
        ) as session:
            await self._starts.start_all(session, StreamReader)
            await self._outlast_deletions(session)
            # calls first, but not before the revocations
            await self._starts.start_all(session, RpcServer)
            self._session = session
            self._connected.set()
            _log.info("bus.connected")
            watching = [
                asyncio.create_task(self._starts.keep_started(session, RpcServer, EventConsumer)),
                asyncio.create_task(watch(session, self._watched)),
            ]
            for task in watching:
                task.add_done_callback(partial(_end_watch, session))
            try:
                await session.lost.wait()
                reason = session.close_reason
                _log.warning("bus.connection_lost", broker=node_name(url), reason=reason)
            finally:
                self._session = None
                self._connected.clear()
                await tasks.end(*watching)
        self._lost_at = time.monotonic()

    async def _outlast_deletions(self, session: BrokerSession) -> None:
        """Wait until the queues of a lost node are deleted, unless this process serves no calls."""
        if len(self._brokers) > 1 and any(isinstance(each, RpcServer) for each in self._consumers):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lost_at + _DELETION_SECONDS - time.monotonic()):
                    await session.lost.wait()

    def _watched(self) -> list[Watched]:
        return [*self._consumers, *self._kept]


def _end_watch(session: BrokerSession, watching: "asyncio.Task[None]") -> None:
    """End a session that is not watched any more."""
    if not watching.cancelled() and (error := watching.exception()):
        _log.error("bus.watch_failed", exc_info=error)
        session.mark_lost()
