"""An in-memory bus for tests. It encodes messages as the AMQP bus does, and differs from it here:

- Cancelling a subscription cancels a running handler, and its event returns to the queue.
- `broadcast` calls one process after the other without a deadline, and raises the error of one.
- The connection cannot break: `on_gap` is never called, and past events are always complete.
"""

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from postbus.bus.v1 import Event, Outcome
from shared import tasks
from shared.bus.call import Call, spend_budget, with_budget
from shared.bus.call_errors import no_route
from shared.bus.message_bus import CREDIT, DELAYS, EventHandler, RpcHandler, require_kept
from shared.bus.reply import CallResult, error_reply, next_payload, result_of
from shared.errors import deadline_exceeded
from shared.outbox.outbox import EncodedEvent
from shared.security_log import SecurityLog

__all__ = ["MemoryBus"]

_KEPT_EVENTS: Final = 10_000
"""Past events that readers of a stream get."""


@dataclass(eq=False)
class _Server:
    routes: frozenset[str]
    handler: RpcHandler
    limit: asyncio.Semaphore
    servers: list["_Server"]
    running: set[asyncio.Task[Any]] = field(default_factory=set)

    async def cancel(self) -> None:
        """Accept no more calls and finish the running ones."""
        if self in self.servers:
            self.servers.remove(self)
        await asyncio.gather(*self.running, return_exceptions=True)


@dataclass(eq=False)
class _Consumer:
    queue: "_Queue"
    task: asyncio.Task[None]
    complete: bool = True

    async def cancel(self) -> None:
        """Stop, and return the event that is being handled to the queue."""
        await tasks.end(self.task)
        self.queue.active.discard(self)


@dataclass(eq=False)
class _Queue:
    types: set[str] = field(default_factory=set)
    events: asyncio.Queue[tuple[bytes, int]] = field(default_factory=asyncio.Queue)
    active: set[_Consumer] = field(default_factory=set)
    durable: bool = False


class MemoryBus:
    """A MessageBus within one process. Messages are encoded as for the broker."""

    def __init__(self, delays: Sequence[float] = DELAYS, *, service: str = "gateway") -> None:
        self.ready = True
        self.warning = ""
        self.incidents: Counter[str] = Counter()
        self.security_log = SecurityLog()
        self.service = service
        """The service that makes the calls."""
        self._delays = delays
        self.dead_letters: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()
        self._servers: list[_Server] = []
        self._calls: dict[str, int] = defaultdict(int)
        self._queues: dict[str, _Queue] = {}
        self._published: deque[tuple[float, str, bytes]] = deque(maxlen=_KEPT_EVENTS)
        """Time of publication (monotonic clock, seconds), type and encoded event."""

    async def call(self, route: str, call: Call) -> CallResult:
        """See MessageBus.call."""
        server, request = self._server(route), _request(call)
        task = asyncio.create_task(_answer(server, route, request, self.service))
        server.running.add(task)
        task.add_done_callback(server.running.discard)
        try:
            async with asyncio.timeout(call.remaining):
                return result_of(await asyncio.shield(task))
        except TimeoutError:
            raise deadline_exceeded() from None
        finally:
            task.cancel()

    async def stream(self, route: str, call: Call) -> AsyncGenerator[bytes, None]:
        """See MessageBus.stream."""
        server, request = self._server(route), _request(call)
        replies: asyncio.Queue[bytes] = asyncio.Queue(CREDIT)
        task = asyncio.create_task(_stream(server, route, request, self.service, replies))
        server.running.add(task)
        task.add_done_callback(server.running.discard)
        try:
            for sequence in count(1):
                async with asyncio.timeout(call.remaining):
                    payload = next_payload(await replies.get(), sequence, call)
                if payload is None:
                    return
                yield payload
        except TimeoutError:
            raise deadline_exceeded() from None
        finally:
            task.cancel()

    async def broadcast(self, route: str, call: Call) -> list[bytes]:
        """See MessageBus.broadcast."""
        servers = [server for server in self._servers if route in server.routes]
        request = _request(call)
        replies = [await _answer(server, route, request, self.service) for server in servers]
        return [result_of(reply).payload for reply in replies]

    def _server(self, route: str) -> _Server:
        servers = [server for server in self._servers if route in server.routes]
        if not servers:
            raise no_route()
        self._calls[route] += 1
        return servers[self._calls[route] % len(servers)]  # round robin, as RabbitMQ

    async def serve(
        self, queue: str, routes: Sequence[str], handler: RpcHandler, *, concurrency: int = 64
    ) -> _Server:
        """See MessageBus.serve."""
        limit = asyncio.Semaphore(concurrency)
        server = _Server(frozenset(routes), handler, limit, self._servers)
        self._servers.append(server)
        return server

    async def publish(self, event: Event) -> None:
        """See MessageBus.publish."""
        await self.publish_encoded(EncodedEvent.of(event))

    async def publish_encoded(self, event: EncodedEvent) -> None:
        """See MessageBus.publish_encoded."""
        self._published.append((time.monotonic(), event.type, event.body))
        for queue in self._queues.values():
            if event.type in queue.types and (queue.durable or queue.active):
                queue.events.put_nowait((event.body, 1))

    async def subscribe(
        self,
        types: Sequence[str],
        handler: EventHandler,
        *,
        queue: str | None = None,
        on_gap: Callable[[], None] | None = None,  # never called: the connection cannot break
    ) -> _Consumer:
        """See MessageBus.subscribe."""
        name = queue or f"own-{len(self._queues)}"
        target = self._queues.setdefault(name, _Queue(durable=queue is not None))
        target.types.update(types)
        task = asyncio.create_task(self._consume(target, handler))
        consumer = _Consumer(target, task)
        target.active.add(consumer)
        return consumer

    async def read_stream(
        self, stream: str, types: Sequence[str], handler: EventHandler, *, seconds: float
    ) -> _Consumer:
        """See MessageBus.read_stream. Every stream contains all events."""
        require_kept(seconds)
        since = time.monotonic() - seconds
        consumer = await self.subscribe(types, handler)
        past = [body for at, type_, body in self._published if type_ in types and at >= since]
        for body in past:
            consumer.queue.events.put_nowait((body, 1))
        await consumer.queue.events.join()
        return consumer

    async def _consume(self, queue: _Queue, handler: EventHandler) -> None:
        while True:
            body, attempt = await queue.events.get()
            try:
                failure = await handler(body)
            except asyncio.CancelledError:
                queue.events.put_nowait((body, attempt))
                raise
            queue.events.task_done()
            if failure is None:
                continue
            if (delay := failure.delay(attempt, self._delays)) is None:
                self.dead_letters.put_nowait((body, failure.reason))
            else:
                retry = (body, attempt + 1)
                asyncio.get_running_loop().call_later(delay, queue.events.put_nowait, retry)


def _request(call: Call) -> bytes:
    """Return the encoded Request with the remaining budget; DEADLINE_EXCEEDED if there is none."""
    remaining = call.remaining
    if remaining <= 0:
        raise deadline_exceeded(Outcome.NO_EFFECT)
    return with_budget(call.request, remaining)


async def _answer(server: _Server, route: str, body: bytes, service: str) -> bytes:
    async with aclosing(_replies(server, route, body, service)) as replies:
        return await anext(replies)


async def _stream(
    server: _Server, route: str, body: bytes, service: str, queue: asyncio.Queue[bytes]
) -> None:
    async with aclosing(_replies(server, route, body, service)) as replies:
        async for reply in replies:
            await queue.put(reply)


async def _replies(
    server: _Server, route: str, body: bytes, service: str
) -> AsyncGenerator[bytes, None]:
    """Yield the replies of a server to a call, once it has a slot."""
    arrived = time.monotonic()
    async with server.limit:
        request = spend_budget(body, time.monotonic() - arrived)
        if request is None:
            yield error_reply(deadline_exceeded(Outcome.NO_EFFECT))
            return
        handling = server.handler(route, request, service)
        if not isinstance(handling, AsyncGenerator):
            yield await handling
            return
        async with aclosing(handling):
            async for reply in handling:
                yield reply
