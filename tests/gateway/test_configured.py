"""Each setting takes effect in the gateway of `python -m gateway`, over a bus in memory."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest
import uvicorn
from pydantic import ValidationError
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway import __main__ as main
from gateway.settings import GatewaySettings
from shared.bus.memory import MemoryBus
from shared.runtime import gc_tuning
from tests.gateway.conftest import Worker
from tests.gateway.listening import serving
from tests.tokens import TokenMaker

PAGE = "https://app.example.com"

Configure = Callable[..., AbstractAsyncContextManager[uvicorn.Config]]


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, bus: MemoryBus, tokens: TokenMaker) -> Configure:
    """Return a function that starts the gateway with settings, and yields uvicorn's Config."""
    monkeypatch.setenv("POSTBUS_AMQP_URL", "amqp://u:p@memory")
    monkeypatch.setenv("POSTBUS_VERIFICATION_KEYS", tokens.key_set)
    monkeypatch.setattr(gc_tuning, "freeze", lambda: None)

    @asynccontextmanager
    async def in_memory(_url: object, _service: str, **_: object) -> AsyncIterator[MemoryBus]:
        yield bus

    monkeypatch.setattr(main, "connect", in_memory)

    @asynccontextmanager
    async def configure(**settings: str) -> AsyncIterator[uvicorn.Config]:
        for name, value in settings.items():
            monkeypatch.setenv(f"POSTBUS_{name.upper()}", value)
        started = asyncio.get_running_loop().create_future()

        async def serve(server: uvicorn.Server) -> None:
            async with server.config.app.running():  # type: ignore[union-attr]
                started.set_result(server.config)
                await asyncio.Event().wait()

        monkeypatch.setattr(uvicorn.Server, "serve", serve)
        running = asyncio.create_task(main._serve(GatewaySettings()))
        done, _ = await asyncio.wait(
            (running, started), return_when=asyncio.FIRST_COMPLETED, timeout=5
        )
        assert started in done, running
        try:
            yield started.result()
        finally:
            running.cancel()
            await asyncio.wait((running,))

    return configure


@asynccontextmanager
async def served(configure: Configure, **settings: str) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of a gateway with these settings."""
    async with (
        configure(**settings) as config,
        serving(config) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        yield client


def socket_url(client: httpx.AsyncClient) -> str:
    return f"ws://127.0.0.1:{client.base_url.port}/ws"


async def test_limit_of_sockets_takes_effect(configured: Configure) -> None:
    async with served(configured, sockets_per_address="1") as client:
        first = await connect(socket_url(client))
        with pytest.raises(InvalidStatus) as refused:
            await connect(socket_url(client))
        await first.close()

    assert refused.value.response.status_code == 429
    assert json.loads(refused.value.response.body)["reason"] == "TOO_MANY_SOCKETS"


async def test_sockets_are_not_compressed(configured: Configure) -> None:
    async with served(configured) as client, connect(socket_url(client)) as connection:
        assert "sec-websocket-extensions" not in connection.response.headers  # type: ignore[union-attr]


async def test_allowed_origins_take_effect(configured: Configure) -> None:
    async with served(configured, allowed_origins=PAGE) as client:
        listed = await client.get("/v1/posts", headers={"Origin": PAGE})
        too_large = b" " * (2 << 20) + b" " * 1025
        by_protocol = await client.post("/v1/posts", content=too_large, headers={"Origin": PAGE})
        async with connect(socket_url(client), origin=PAGE):  # type: ignore[arg-type]
            pass

    for response, status in ((listed, 200), (by_protocol, 413)):
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == PAGE


async def test_metadata_headers_take_effect(configured: Configure, worker: Worker) -> None:
    async with served(configured, metadata_headers="Accept-Language, x-tenant") as client:
        await client.get("/v1/posts", headers={"X-Tenant": "7"})

    [(_, request)] = worker.requests
    assert [(each.name, each.values) for each in request.metadata] == [("x-tenant", ["7"])]


def test_credentials_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBUS_AMQP_URL", "amqp://u:p@memory")
    monkeypatch.setenv("POSTBUS_VERIFICATION_KEYS", "{}")
    monkeypatch.setenv("POSTBUS_METADATA_HEADERS", "x-tenant,Authorization")
    with pytest.raises(ValidationError, match="no credentials"):
        GatewaySettings()


async def test_operators_networks_take_effect(configured: Configure) -> None:
    async with served(configured, operator_networks="10.0.0.0/8") as client:
        response = await client.get("/metrics")

    assert (response.status_code, response.json()["reason"]) == (403, "OPERATORS_ONLY")


async def test_security_contact_takes_effect(configured: Configure) -> None:
    async with served(configured, security_contact="mailto:a@b.example") as client:
        response = await client.get("/.well-known/security.txt")

    assert response.text.startswith("Contact: mailto:a@b.example\n")


async def test_rates_take_effect(configured: Configure, tokens: TokenMaker) -> None:
    rates = {
        "rate_address": "11/hour",
        "rate_user": "12/hour",
        "rate_user_changes": "13/hour",
        "rate_methods": '{"postbus.posts.v1.PostsService.CreatePost": "14/hour"}',
    }
    user = {"Authorization": f"Bearer {tokens.token('alice')}"}
    async with served(configured, **rates) as client:
        anonymous = await client.get("/v1/posts")
        changed = await client.post("/v1/posts", json={"title": "Hi"}, headers=user)

    assert anonymous.headers["ratelimit-policy"] == '"address";q=11;w=3600'
    policies = ('"CreatePost";q=14;w=3600', '"user-changes";q=13;w=3600', '"user";q=12;w=3600')
    assert changed.headers["ratelimit-policy"] == ", ".join(policies)


async def test_largest_body_takes_effect_in_protocol_and_application(
    configured: Configure, tokens: TokenMaker
) -> None:
    async with served(configured, max_body_bytes="9000") as client:
        by_protocol = await client.post("/v1/auth/login", content=b" " * (9001 + 1024))
        json = {"content-type": "application/json"}
        by_application = await client.post("/v1/auth/login", content=b" " * 9001, headers=json)
        async with connect(socket_url(client)) as connection:
            token = tokens.token("alice")
            await connection.send(f'{{"id":"1","authenticate":{{"accessToken":"{token}"}}}}')
            await connection.recv()
            await connection.send(" " * 9001)
            await connection.wait_closed()

    assert (by_protocol.status_code, by_application.status_code) == (413, 413)
    assert connection.close_code == 1009


async def test_slightly_too_large_message_is_refused_by_the_connect_protocol(
    configured: Configure,
) -> None:
    path, kind = "/postbus.posts.v1.PostsService/GetPost", {"content-type": "application/proto"}
    async with served(configured, max_body_bytes="9000") as client:
        refused = await client.post(path, content=bytes(9010), headers=kind)
        far_too_large = await client.post(path, content=bytes(9000 + 1025), headers=kind)

    assert (refused.status_code, refused.json()["code"]) == (429, "resource_exhausted")
    assert far_too_large.status_code == 413


async def test_idle_time_takes_effect(configured: Configure) -> None:
    async with served(configured, idle_seconds="0.05") as client, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        received = await reader.read()
        writer.close()

    assert received.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({"max_connections": "1"}, b"503"),
        ({"max_connections_per_address": "1"}, b"429"),
        ({"max_connections_per_address": "1", "trusted_proxies": "127.0.0.1"}, b"200"),
    ],
)
async def test_limits_of_connections_take_effect(
    configured: Configure, settings: dict[str, str], status: bytes
) -> None:
    async with served(configured, **settings) as client, asyncio.timeout(5):
        port = client.base_url.port
        with socket.create_connection(("127.0.0.1", port or 0)):
            await asyncio.sleep(0)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            line = await reader.readline()
            writer.close()

    assert line.split()[1] == status


async def test_only_a_trusted_proxy_sets_the_address_of_the_client(configured: Configure) -> None:
    forwarded = {"X-Forwarded-For": "192.0.2.1"}
    limits = {"rate_address": "1/hour"}
    async with served(configured, **limits) as client:
        direct = [
            (await client.get("/v1/posts", headers=headers)).status_code
            for headers in ({}, forwarded)
        ]
    async with served(configured, **limits, trusted_proxies="127.0.0.1") as client:
        behind_proxy = [
            (await client.get("/v1/posts", headers=headers)).status_code
            for headers in ({}, forwarded)
        ]

    assert direct == [200, 429]
    assert behind_proxy == [200, 200]


async def test_server_has_no_name_and_strict_transport_security_if_set(
    configured: Configure,
) -> None:
    async with served(configured) as client:
        plain = await client.get("/healthz")
    async with served(configured, hsts_seconds="60") as client:
        secured = await client.get("/healthz")

    assert "server" not in plain.headers
    assert "strict-transport-security" not in plain.headers
    assert secured.headers["strict-transport-security"] == "max-age=60; includeSubDomains"


async def test_shutdown_gives_requests_a_short_time(configured: Configure) -> None:
    async with configured() as config:
        assert 0 < (config.timeout_graceful_shutdown or 0) <= 5
        assert not config.access_log
