"""Metrics and readiness: restricted to operators, and cheap to request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network

import httpx
import pytest

from gateway import health, metrics
from gateway.app import build_app
from gateway.cached_result import CachedResult
from gateway.gateway import Gateway
from gateway.operator_networks import OperatorNetworks
from postbus.bus.v1 import CheckResponse, GetStatisticsResponse, Instance, Part, Reply, Request
from postbus_runtime.reasons import Reason
from shared.access_tokens import TokenVerifier
from shared.bus import Call
from shared.bus.memory import MemoryBus
from shared.errors import Code, ServiceError
from shared.wire import decode, encode
from tests.gateway.listening import open_socket


@asynccontextmanager
async def from_address(app: Gateway, address: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, client=(address, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.5", False),
        ("203.0.113.9", False),
        ("2001:db8::1", False),
        ("a-unix-socket", False),
        ("", False),
    ],
)
async def test_only_loopback_clients_are_operators_by_default(
    app: Gateway, address: str, allowed: bool
) -> None:
    async with from_address(app, address) as client:
        metrics, ready = await client.get("/metrics"), await client.get("/readyz")
        alive = await client.get("/healthz")

    assert metrics.status_code == (200 if allowed else 403)
    assert ("postbus_" in metrics.text) is allowed
    assert ready.json().keys() == (
        {"ready", "parts", "missing", "warnings"} if allowed else {"ready"}
    )
    assert alive.status_code == 200


@pytest.mark.parametrize("name", ["Forwarded", "X-Forwarded-For", "Via"])
async def test_request_forwarded_by_an_untrusted_local_proxy_is_no_operators(
    app: Gateway, name: str
) -> None:
    async with from_address(app, "127.0.0.1") as client:
        metrics = await client.get("/metrics", headers={name: "203.0.113.9"})
        ready = await client.get("/readyz", headers={name: "203.0.113.9"})

    assert (metrics.status_code, metrics.json()["reason"]) == (403, "OPERATORS_ONLY")
    assert ready.json().keys() == {"ready"}


async def test_operator_networks_are_configurable(bus: MemoryBus, verifier: TokenVerifier) -> None:
    app = build_app(
        bus, verifier, max_body_bytes=1000, operator_networks=(ip_network("10.0.0.0/8"),)
    )
    async with from_address(app, "10.1.2.3") as client:
        inside = await client.get("/metrics")
    async with from_address(app, "127.0.0.1") as client:
        outside = await client.get("/metrics")

    assert (inside.status_code, outside.status_code) == (200, 403)


async def test_readiness_without_details_is_public(
    app: Gateway, bus: MemoryBus, verifier: TokenVerifier
) -> None:
    async def well(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=encode(CheckResponse(parts=[Part(name="db", ready=True)]))))

    ready = MemoryBus()
    for worker in ("posts", "users"):
        await ready.serve(worker, [f"postbus.bus.v1.HealthService.Check.{worker}"], well)
    app_of_ready = build_app(ready, verifier, max_body_bytes=1000)
    async with app_of_ready.running(), from_address(app_of_ready, "203.0.113.9") as client:
        response = await client.get("/readyz")
    async with from_address(app, "203.0.113.9") as client:
        missing = await client.get("/readyz")

    assert (response.status_code, response.json()) == (200, {"ready": True})
    assert (missing.status_code, missing.json()) == (503, {"ready": False})


async def test_broker_and_revocations_are_parts_of_the_readiness(
    bus: MemoryBus, verifier: TokenVerifier
) -> None:
    bus.ready = False
    async with from_address(build_app(bus, verifier, max_body_bytes=1000), "127.0.0.1") as client:
        parts = (await client.get("/readyz")).json()["parts"]

    assert (parts["rabbitmq"], parts["gateway.sessions"]) == (False, False)


async def test_operators_see_what_a_worker_lacks(verifier: TokenVerifier) -> None:
    part = Part(name="db", ready=False, message="Run: python -m posts migrate")

    async def lacking(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=encode(CheckResponse(parts=[part]))))

    bus = MemoryBus()
    await bus.serve("posts", ["postbus.bus.v1.HealthService.Check.posts"], lacking)
    app = build_app(bus, verifier, max_body_bytes=1000)
    async with app.running(), from_address(app, "127.0.0.1") as client:
        response = await client.get("/readyz")

    assert response.status_code == 503
    assert response.json()["missing"] == {
        "posts.db": "Run: python -m posts migrate",
        "users": "The worker does not respond: NO_ROUTE.",
    }


async def test_warnings_of_the_gateway_and_of_workers_leave_the_system_ready(
    verifier: TokenVerifier,
) -> None:
    part = Part(name="calls", ready=True, message="Two workers have replied.")

    async def warning(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=encode(CheckResponse(parts=[part]))))

    bus = MemoryBus()
    bus.warning = "Two workers have replied to the gateway."
    for worker in ("posts", "users"):
        await bus.serve(worker, [f"postbus.bus.v1.HealthService.Check.{worker}"], warning)
    app = build_app(bus, verifier, max_body_bytes=1000)
    async with app.running(), from_address(app, "127.0.0.1") as client:
        response = await client.get("/readyz")

    assert (response.status_code, response.json()["missing"]) == (200, {})
    assert response.json()["warnings"] == {
        "gateway.calls": "Two workers have replied to the gateway.",
        "posts.calls": "Two workers have replied.",
        "users.calls": "Two workers have replied.",
    }


async def test_concurrent_probes_and_scrapes_call_workers_once(
    verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_FRESH_SECONDS", 60)
    monkeypatch.setattr(metrics, "_FRESH_SECONDS", 60)
    called, budgets = [], []

    async def count(route: str, body: bytes, _service: str) -> bytes:
        called.append(route)
        budgets.append(decode(Request, body).budget_ms / 1000)
        return encode(Reply())

    bus = MemoryBus()
    await bus.serve("posts", ["postbus.bus.v1.HealthService.Check.posts"], count)
    await bus.serve("more", ["postbus.bus.v1.WorkerService.GetStatistics.posts"], count)
    app = build_app(bus, verifier, max_body_bytes=1000)
    async with from_address(app, "127.0.0.1") as client:
        for path in ("/readyz", "/metrics"):
            await asyncio.gather(*(client.get(path) for _ in range(20)))
            await client.get(path)

    assert max(budgets) <= 1
    assert sorted(called) == [
        "postbus.bus.v1.HealthService.Check.posts",
        "postbus.bus.v1.WorkerService.GetStatistics.posts",
    ]


async def test_metrics_lack_the_workers_that_cannot_be_reached(verifier: TokenVerifier) -> None:
    class Bus(MemoryBus):
        async def broadcast(self, route: str, call: Call) -> list[bytes]:
            raise ServiceError(Reason("NO_CONNECTION", Code.UNAVAILABLE), route)

    app = build_app(Bus(), verifier, max_body_bytes=1000)
    async with from_address(app, "127.0.0.1") as client:
        response = await client.get("/metrics")

    assert response.status_code == 200
    assert "postbus_http_requests_in_flight 1.0" in response.text
    assert "postbus_worker_start_time_seconds{" not in response.text


async def test_incidents_of_the_bus_are_counted_for_each_process(verifier: TokenVerifier) -> None:
    statistics = GetStatisticsResponse(
        instance=Instance(worker="posts", id="host:1"), incidents={"consumer.paused": 2}
    )

    async def of_posts(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=encode(statistics)))

    bus = MemoryBus()
    bus.incidents["consumer.lost_events"] += 1
    await bus.serve("posts", ["postbus.bus.v1.WorkerService.GetStatistics.posts"], of_posts)
    app = build_app(bus, verifier, max_body_bytes=1000)
    async with from_address(app, "127.0.0.1") as client:
        lines = (await client.get("/metrics")).text.splitlines()

    name = "postbus_bus_incidents_total"
    assert sorted(each.removeprefix(name) for each in lines if each.startswith(name)) == [
        '{incident="consumer.lost_events",instance="",worker="gateway"} 1.0',
        '{incident="consumer.paused",instance="host:1",worker="posts"} 2.0',
    ]


async def test_open_sockets_are_counted(app: Gateway) -> None:
    async with from_address(app, "127.0.0.1") as client, open_socket(app) as socket:
        await (await socket.connection.ping())

        assert "postbus_websockets_open 1.0" in (await client.get("/metrics")).text


async def test_result_is_computed_again_after_its_time() -> None:
    computed = 0

    async def compute() -> int:
        nonlocal computed
        computed += 1
        return computed

    cached, expired = CachedResult(compute, seconds=60), CachedResult(compute, seconds=-1)

    assert [await cached.get(), await cached.get()] == [1, 1]
    assert [await expired.get(), await expired.get()] == [2, 3]


async def test_cancelled_caller_does_not_cancel_the_shared_computation() -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    async def compute() -> str:
        begun.set()
        await finish.wait()
        return "done"

    result = CachedResult(compute, seconds=60)
    cancelled, waiting = (asyncio.create_task(result.get()) for _ in range(2))
    await begun.wait()
    cancelled.cancel()
    await asyncio.wait([cancelled])
    finish.set()

    assert await waiting == "done"


@pytest.mark.parametrize("client", [None, ("a-unix-socket", 0)])
async def test_client_without_an_address_is_no_operator(client: tuple[str, int] | None) -> None:
    everywhere = OperatorNetworks([ip_network("0.0.0.0/0"), ip_network("::/0")])

    assert not everywhere.include({"type": "http", "client": client, "headers": []})


async def test_requests_that_are_being_answered_are_counted(app: Gateway) -> None:
    async with from_address(app, "127.0.0.1") as client:
        text = (await client.get("/metrics")).text  # the request itself

    assert "postbus_http_requests_in_flight 1.0" in text


async def test_unknown_verbs_share_one_label(app: Gateway) -> None:
    async with from_address(app, "127.0.0.1") as client:
        for path in ("/v1/posts", "/nowhere", "/healthz"):
            for number in range(5):
                await client.request(f"MADEUP{number}", path)
        text = (await client.get("/metrics")).text

    assert "MADEUP" not in text
    assert 'method="other"' in text
