"""Everything that a service declares at the broker is restored while the service runs."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import quote

import httpx
import pytest
from pydantic import SecretStr

from postbus.bus.v1 import Event, Reply
from postbus.registry import EVENTS, METHODS
from shared.bus import Call
from shared.bus.amqp import AmqpBus, connect
from shared.bus.message_bus import Failure
from shared.errors import ServiceError
from shared.wire import decode, encode
from tests.conftest import new_vhost

SECONDS = 10.0
"""Time in which the system is whole again."""
SERVICES = sorted({name.split(".")[1] for name in EVENTS})


async def echo(_route: str, _body: bytes, _service: str) -> bytes:
    return encode(Reply(payload=b"here"))


@dataclass
class Traffic:
    """Calls and events between the services; each event fails once in each consumer."""

    buses: dict[str, AmqpBus]
    confirmed: set[str] = field(default_factory=set)
    handled: dict[str, set[str]] = field(default_factory=dict)
    answered_at: dict[str, float] = field(default_factory=dict)
    failed: set[tuple[str, str]] = field(default_factory=set)

    async def start(self) -> None:
        """Serve every method, and consume every event at every service but the gateway."""
        gateway = self.buses["gateway"]
        await gateway.subscribe(list(EVENTS), self._ignore)
        for service in SERVICES:
            bus = self.buses[service]
            await bus.read_stream("revocations", list(EVENTS), self._ignore, seconds=60)
            for event in self.types():
                name = f"{service}.{event}"
                self.handled[name] = set()
                await bus.subscribe([event], self._consumer(name), queue=name)
            routes = [name for name, method in METHODS.items() if method.worker == service]
            await bus.serve(service, routes, echo)

    @staticmethod
    def types() -> list[str]:
        """Return an event of each service."""
        return [next(e for e in EVENTS if e.split(".")[1] == service) for service in SERVICES]

    @staticmethod
    async def _ignore(_body: bytes) -> Failure | None:
        return None

    def _consumer(self, name: str) -> Callable[[bytes], "asyncio.Future[Failure | None]"]:
        async def consume(body: bytes) -> Failure | None:
            id_ = decode(Event, body).id
            if (name, id_) not in self.failed:
                self.failed.add((name, id_))
                return Failure(reason="ONCE", message="Once.", retry=True)
            self.handled[name].add(id_)
            return None

        return consume  # type: ignore[return-value]  # an awaitable, as EventHandler wants

    async def call(self, caller: str, route: str) -> None:
        """Call a method without end."""
        while True:
            with suppress(ServiceError):
                call = Call.new(b"", budget=1)
                await self.buses[caller].call(route, call)
                self.answered_at[f"{caller} {route}"] = time.monotonic()
            await asyncio.sleep(0.05)

    async def publish(self, type_: str) -> None:
        """Publish events of a type without end, each until it is confirmed."""
        number = 0
        while True:
            id_ = f"{type_} {number}"
            try:
                await self.buses[type_.split(".")[1]].publish(Event(id=id_, type=type_))
            except ServiceError:
                await asyncio.sleep(0.1)
            else:
                self.confirmed.add(id_)
                number += 1
                await asyncio.sleep(0.05)

    def missing(self) -> set[str]:
        """Return the confirmed events that a consumer has not handled."""
        return {
            id_
            for name, handled in self.handled.items()
            for id_ in self.confirmed - handled
            if id_.split()[0] == name.partition(".")[2]
        }

    def silent(self, before: dict[str, float]) -> set[str]:
        """Return the calls without an answer since `before`."""
        return {key for key, at in self.answered_at.items() if at <= before[key]}


@asynccontextmanager
async def running(url: str) -> AsyncIterator[Traffic]:
    """Run the services with traffic between them."""
    async with AsyncExitStack() as stack:
        buses = {}
        for name in ("gateway", *SERVICES):
            bus = connect(SecretStr(url), name, delays=(0.1,), keep_events=name == "gateway")
            buses[name] = await stack.enter_async_context(bus)
            await buses[name].wait_ready()
        traffic = Traffic(buses)
        await traffic.start()
        routes = [next(n for n, m in METHODS.items() if m.worker == each) for each in SERVICES]
        tasks = [asyncio.create_task(traffic.call("gateway", route)) for route in routes]
        try:
            async with asyncio.timeout(20):
                while len(traffic.answered_at) < len(routes):  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.05)
            yield traffic
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def objects(management: httpx.AsyncClient, vhost: str) -> set[tuple[str, str]]:
    """Return the exchanges and queues of a virtual host, each with its kind."""
    found = set()
    for kind in ("exchanges", "queues"):
        for each in (await management.get(f"/api/{kind}/{vhost}?columns=name")).json():
            if each["name"] and not each["name"].startswith("amq."):
                found.add((kind, each["name"]))
    return found


async def until_stream_is_bound(management: httpx.AsyncClient, vhost: str) -> None:
    """Wait until every event is in the stream, from which consumers read lost events again."""
    path = f"/api/queues/{vhost}/gateway.events/bindings"
    async with asyncio.timeout(20):
        while len((await management.get(path)).json()) < 2 + len(SERVICES):  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.1)


def kind_of(name: str) -> str:
    """Return the kind of an object; those of one kind are restored in the same way."""
    parts = name.split(".")
    if parts[0] == "postbus":
        return parts[1]
    if parts[1] in {"replies", "control", "delay", "subscription", "revocations"}:
        return parts[1]
    if name.endswith(".dead"):
        return "dead letters"
    return name if name == "gateway.events" else "method" if "Service." in name else "consumer"


KINDS = [
    *(("exchanges", each) for each in ("calls", "replies", "control", "retry", "dead", "events")),
    ("exchanges", "delay"),
    *(("queues", each) for each in ("replies", "control", "delay", "subscription", "revocations")),
    *(("queues", each) for each in ("dead letters", "gateway.events", "method", "consumer")),
]


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("category", "kind"), KINDS, ids=lambda each: each)
async def test_system_is_whole_again_after_the_loss_of_every_object_of_a_kind(
    category: str, kind: str, unique: Callable[[str], str]
) -> None:
    async with (
        new_vhost(unique("test_")) as url,
        httpx.AsyncClient(base_url=os.environ["POSTBUS_AMQP_MANAGEMENT_URL"]) as management,
        running(url) as traffic,
    ):
        vhost = httpx.URL(url).path.strip("/")
        await until_stream_is_bound(management, vhost)
        publishing = [asyncio.create_task(traffic.publish(each)) for each in traffic.types()]
        async with asyncio.timeout(20):
            while len(traffic.confirmed) < 20:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.05)
        before = await objects(management, vhost)
        assert {(each, kind_of(name)) for each, name in before} == set(KINDS)
        damaged = [each for each in before if each[0] == category and kind_of(each[1]) == kind]
        for _, name in damaged:
            path = f"/api/{category}/{vhost}/{quote(name, safe='')}"
            # 400: an exclusive queue, which only its connection can delete; 404: one that the
            # broker has deleted with its last consumer
            assert (await management.delete(path)).status_code in {204, 400, 404}
        damaged_at = time.monotonic()
        await asyncio.sleep(SECONDS - (time.monotonic() - damaged_at))

        published = set(traffic.confirmed)
        answered = dict(traffic.answered_at)
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                while traffic.missing() & published or traffic.silent(answered):  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.05)
        assert (traffic.missing() & published, traffic.silent(answered)) == (set(), set())
        restored = await objects(management, vhost)
        own_names = ("replies", "control", "subscription")
        assert {each for each in before if kind_of(each[1]) not in own_names} <= restored
        for task in publishing:
            task.cancel()
        await asyncio.gather(*publishing, return_exceptions=True)
