"""One effect per operation and no lost event under random faults; the seed is printed.

POSTBUS_SEED=N repeats a run as far as the machine allows.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from pydantic import SecretStr

from postbus.bus.v1 import Event, Reply, Request
from shared.bus import Call, MessageBus
from shared.bus.amqp import connect
from shared.bus.memory import MemoryBus
from shared.bus.message_bus import Failure
from shared.errors import ServiceError
from shared.outbox.inbox import Operation
from shared.outbox.relay import relay
from shared.outbox.unit_of_work import current_unit_of_work
from shared.wire import decode, encode
from tests.notes import Notes, postgres_notes
from tests.proxy import Proxy

pytestmark = pytest.mark.long

Unique = Callable[[str], str]
OPERATIONS = 40
SECONDS = 6.0


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("POSTBUS_SEED") or random.randrange(2**32))  # noqa: S311
    print(f"POSTBUS_SEED={seed}")  # noqa: T201  # pytest shows it if the test fails
    return random.Random(seed)  # noqa: S311


class Trouble:
    """Delays, duplicates and drops messages and breaks connections, until it is `over`."""

    def __init__(self, dice: random.Random, proxy: Proxy | None) -> None:
        self._dice = dice
        self._proxy = proxy
        self._end = time.monotonic() + SECONDS

    @property
    def over(self) -> bool:
        return time.monotonic() > self._end

    def happens(self, chance: float) -> bool:
        return not self.over and self._dice.random() < chance

    async def delay(self) -> None:
        """Wait a moment, so that later messages overtake."""
        if self.happens(0.5):
            await asyncio.sleep(self._dice.random() * 0.1)

    async def run(self) -> None:
        while self._proxy is not None and not self.over:
            await asyncio.sleep(self._dice.random() * 0.5)
            if self._dice.random() < 0.3:
                self._proxy.stall()
                await asyncio.sleep(self._dice.random() * 0.3)
                self._proxy.flow()
            else:
                self._proxy.break_()


@asynccontextmanager
async def buses(transport: str, vhost: str, proxy: Proxy) -> AsyncIterator[list[MessageBus]]:
    """Yield a bus each for the client, the worker and the consumer."""
    if transport == "memory":
        yield [MemoryBus(delays=(0.05, 0.1))] * 3
        return
    url = SecretStr(str(httpx.URL(vhost).copy_with(port=proxy.port)))
    async with AsyncExitStack() as stack:
        opened = []
        for name in ("client", "worker", "consumer"):
            bus = connect(url, name, delays=(0.05, 0.1))
            opened.append(await stack.enter_async_context(bus))
            await opened[-1].wait_ready()
        yield list(opened)


class Worker:
    """Stores a note for each operation and publishes an event, as a unit of work."""

    def __init__(self, notes: Notes, event: str, trouble: Trouble) -> None:
        self._notes = notes
        self._event = event
        self._trouble = trouble

    async def answer(self, route: str, body: bytes, _service: str) -> bytes:
        await self._trouble.delay()
        replies = [await self._perform(body)]
        if self._trouble.happens(0.2):  # delivered twice
            replies.append(await self._perform(body))
        assert len(set(replies)) == 1
        if self._trouble.happens(0.1):  # the reply is lost
            await asyncio.sleep(1)
        return encode(Reply(payload=replies[0]))

    async def _perform(self, body: bytes) -> bytes:
        request = decode(Request, body)
        name = request.payload.decode()

        async def handler() -> bytes:
            await self._notes.add(name)
            await self._trouble.delay()
            work = current_unit_of_work()
            assert work is not None
            work.events.append(Event(id=f"event-{name}", type=self._event, data=request.payload))
            return f"{name} {random.random()}".encode()  # noqa: S311  # distinguishes runs

        operation = Operation(key=Operation.key_of("call", request.operation_id))
        return (await self._notes.store.perform(operation, handler)).reply

    async def consume(self, body: bytes) -> Failure | None:
        await self._trouble.delay()
        if self._trouble.happens(0.2):
            return Failure(reason="TROUBLE", message="Trouble.", retry=True, dependency_down=True)
        event = decode(Event, body)

        async def handler() -> bytes:
            await self._notes.add(f"seen {event.data.decode()}")
            return b""

        key = Operation.key_of("event", event.id)
        for _ in range(1 + self._trouble.happens(0.2)):
            await self._notes.store.perform(Operation(key=key, begin_immediately=True), handler)
        return None


@pytest.mark.parametrize("transport", ["memory", "amqp"])
async def test_every_operation_has_its_effect_once(
    transport: str, vhost: str, postgres_url: str, unique: Unique, dice: random.Random
) -> None:
    broker = httpx.URL(vhost)
    proxy = Proxy(broker.host, broker.port or 5672)
    await proxy.start()
    route, event = unique("postbus.worker.v1.Route"), unique("postbus.worker.v1.Event")
    async with (
        postgres_notes(postgres_url, unique) as notes,
        buses(transport, vhost, proxy) as (client, serving, consuming),
    ):
        trouble = Trouble(dice, proxy)
        worker = Worker(notes, event, trouble)
        server = await serving.serve(unique("queue."), [route], worker.answer)
        subscription = await consuming.subscribe([event], worker.consume, queue=unique("queue."))
        background = [
            asyncio.create_task(relay(notes.store, serving.publish_encoded)),
            asyncio.create_task(trouble.run()),
        ]

        async def operate(number: int) -> bytes:
            await asyncio.sleep(dice.random() * SECONDS)
            name, id_ = f"note-{number}", unique("operation-")
            while True:  # as a client that needs an answer does
                call = Call.new(name.encode(), budget=0.8, operation_id=id_)
                try:
                    answer = (await client.call(route, call)).payload
                    if trouble.happens(0.2):  # the client has not seen the answer
                        assert (await client.call(route, call)).payload == answer
                except ServiceError:
                    await asyncio.sleep(dice.random() * 0.2)
                else:
                    return answer

        async with asyncio.timeout(40):
            answers = await asyncio.gather(*map(operate, range(OPERATIONS)))
            while await missing(notes):  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.1)
        proxy.flow()
        for task in background:
            task.cancel()
        await asyncio.gather(server.cancel(), subscription.cancel())

        assert [answer.split()[0].decode() for answer in answers] == names()
        assert [await notes.count(name) for name in names()] == [1] * OPERATIONS
        assert [await notes.count(f"seen {name}") for name in names()] == [1] * OPERATIONS
    await proxy.stop()


def names() -> list[str]:
    return [f"note-{number}" for number in range(OPERATIONS)]


async def missing(notes: Notes) -> bool:
    """Return whether the event of an operation has had no effect."""
    return any([await notes.count(f"seen {name}") == 0 for name in names()])
