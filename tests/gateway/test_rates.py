"""Rates by address, user and method; in memory and in Redis."""

import asyncio
import json
import secrets
import shutil
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path

import httpx
import pytest
from limits.aio.storage import RedisStorage
from pydantic import SecretStr, ValidationError
from structlog.testing import capture_logs
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.app import build_app
from gateway.gateway import Gateway
from gateway.problems import HttpError
from gateway.rate_limits import RateLimits, RateLimitSettings
from gateway.rate_storage import BoundedStorage, open_storage
from gateway.settings import GatewaySettings
from postbus.registry import METHODS
from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus
from shared.errors import Code
from tests.gateway.listening import listening, open_socket
from tests.other_servers import KINDS, Serve, other_server
from tests.people import eventually
from tests.system import free_port
from tests.tokens import TokenMaker
from tools.servers import ServersUnavailableError, packages
from users.settings import UsersSettings

READ = METHODS["postbus.users.v1.UsersService.GetMe"]
CHANGE = METHODS["postbus.posts.v1.PostsService.CreatePost"]
LOG_IN = METHODS["postbus.users.v1.AuthService.LogIn"]
CHANGE_PASSWORD = METHODS["postbus.users.v1.AuthService.ChangePassword"]


def _rates(
    *, address: str = "", user: str = "", user_changes: str = "", **methods: str
) -> tuple[RateLimits, list[float]]:
    named = {
        name: rate for name in METHODS for last, rate in methods.items() if name.endswith(last)
    }
    settings = RateLimitSettings(
        address=address,
        user=user,
        user_changes=user_changes,
        methods=dict.fromkeys(METHODS, "") | named,
    )
    now = [600.0]
    return RateLimits(settings, BoundedStorage(), lambda: now[0]), now


async def _refused(
    rates: RateLimits, address: str, caller_id: str = "", method: object = READ
) -> HttpError:
    with pytest.raises(HttpError) as refused:
        await rates.admit(address, caller_id, method)  # type: ignore[arg-type]
    return refused.value


async def test_address_without_token_is_refused_after_its_rate_and_others_are_not() -> None:
    rates, now = _rates(address="2/minute")
    now[0] = 645.0
    await rates.admit("192.0.2.1")
    await rates.admit("192.0.2.1")
    error = await _refused(rates, "192.0.2.1")
    assert (error.reason.http_status, error.code, error.reason) == (
        429,
        Code.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
    )
    assert error.retry_after == 15
    assert error.headers == {
        "RateLimit-Policy": '"address";q=2;w=60',
        "RateLimit": '"address";r=0;t=15',
    }
    await rates.admit("192.0.2.2")


async def test_ipv6_addresses_of_a_network_have_one_rate() -> None:
    rates, _ = _rates(address="1/minute")
    await rates.admit("2001:db8:1:2::1")
    await _refused(rates, "2001:db8:1:2:ffff::9")
    await rates.admit("2001:db8:1:3::1")


async def test_next_window_has_the_full_rate() -> None:
    rates, now = _rates(address="1/minute")
    await rates.admit("192.0.2.1")
    await _refused(rates, "192.0.2.1")
    now[0] = 660.0
    await rates.admit("192.0.2.1")


async def test_user_is_counted_by_id_wherever_the_requests_come_from() -> None:
    rates, _ = _rates(address="1/minute", user="2/minute")
    await rates.admit("192.0.2.1", "u1", READ)
    await rates.admit("192.0.2.2", "u1", READ)
    await _refused(rates, "192.0.2.3", "u1")
    await rates.admit("192.0.2.1", "u2", READ)


async def test_changes_have_a_separate_rate_in_addition_to_the_users() -> None:
    rates, _ = _rates(user="3/minute", user_changes="1/minute")
    headers = await rates.admit("192.0.2.1", "u1", CHANGE)
    assert headers == [
        (b"ratelimit-policy", b'"user-changes";q=1;w=60, "user";q=3;w=60'),
        (b"ratelimit", b'"user-changes";r=0;t=60, "user";r=2;t=60'),
    ]
    await _refused(rates, "192.0.2.1", "u1", CHANGE)
    await rates.admit("192.0.2.1", "u1", READ)


async def test_rate_of_a_public_method_counts_by_address_even_with_a_token() -> None:
    rates, _ = _rates(LogIn="1/minute")
    await rates.admit("192.0.2.1", "u1", LOG_IN)
    await _refused(rates, "192.0.2.1", "u2", LOG_IN)
    await rates.admit("192.0.2.2", "u2", LOG_IN)


async def test_rate_of_a_method_for_users_counts_by_user() -> None:
    rates, _ = _rates(ChangePassword="1/minute")
    await rates.admit("192.0.2.1", "u1", CHANGE_PASSWORD)
    await rates.admit("192.0.2.1", "u2", CHANGE_PASSWORD)
    await _refused(rates, "192.0.2.9", "u1", CHANGE_PASSWORD)


async def test_refusals_of_a_method_do_not_use_up_the_rate_of_the_address() -> None:
    rates, _ = _rates(address="2/minute", LogIn="1/minute")
    await rates.admit("192.0.2.1", "", LOG_IN)
    for _ in range(5):
        await _refused(rates, "192.0.2.1", "", LOG_IN)
    await rates.admit("192.0.2.1", "", READ)


async def test_rate_of_the_contract_applies_unless_a_setting_overrides_it() -> None:
    settings = RateLimitSettings(address="", user="", user_changes="", methods={})
    rates = RateLimits(settings, BoundedStorage(), lambda: 0.0)
    for _ in range(60):
        await rates.admit("192.0.2.1", "", LOG_IN)
    await _refused(rates, "192.0.2.1", "", LOG_IN)


async def test_memory_drops_the_oldest_window_at_its_bound() -> None:
    storage = BoundedStorage(max_keys=2)
    for key in ("a", "b", "c"):
        await storage.incr(key, 60)
    assert [await storage.get(key) for key in ("a", "b", "c")] == [0, 1, 1]


async def test_memory_holds_50000_windows() -> None:
    storage = BoundedStorage()
    for number in range(50_001):
        storage.count(str(number))

    assert [await storage.get(key) for key in ("0", "1", "50000")] == [0, 1, 1]


@pytest.fixture(scope="module")
async def redis_url() -> AsyncIterator[str]:
    """Yield a Redis for this module, from Debian's package if the system has none."""
    program, libraries = shutil.which("redis-server"), ""
    if program is None:
        try:
            packages.provide(["redis-server"])
        except ServersUnavailableError as error:
            pytest.skip(f"no Redis here: {error}")
        program = str(packages.UNPACKED / "usr/bin/redis-server")
        libraries = packages.library_path()
    port = free_port()
    server = await asyncio.create_subprocess_exec(
        *(program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
        stdout=asyncio.subprocess.PIPE,
        env={"LD_LIBRARY_PATH": libraries},
        cwd=Path("/tmp"),  # noqa: S108  # it writes nothing
    )
    try:
        async with asyncio.timeout(10):
            while b"eady to accept connections" not in await server.stdout.readline():  # type: ignore[union-attr]
                pass
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.kill()
        await server.wait()


async def test_gateways_count_together_in_redis(redis_url: str) -> None:
    settings = RateLimitSettings(address="2/minute", user="", user_changes="", methods={})
    address, url = str(IPv4Address(secrets.randbits(32))), SecretStr(redis_url)
    async with open_storage(url) as first, open_storage(url) as second:
        one, other = (RateLimits(settings, store, lambda: 600.0) for store in (first, second))
        await one.admit(address)
        await other.admit(address)
        await _refused(one, address)
        await _refused(other, address)


async def test_gateway_counts_alone_while_redis_is_unavailable() -> None:
    settings = RateLimitSettings(address="1/minute", user="", user_changes="", methods={})
    async with open_storage(SecretStr(f"redis://127.0.0.1:{free_port()}")) as storage:
        rates = RateLimits(settings, storage, lambda: 600.0)
        await rates.admit("192.0.2.1")
        await _refused(rates, "192.0.2.1")


async def test_unavailable_store_is_logged_at_intervals() -> None:
    settings = RateLimitSettings(address="9/minute")
    async with open_storage(SecretStr(f"redis://127.0.0.1:{free_port()}")) as storage:
        rates = RateLimits(settings, storage, lambda: 600.0)
        with capture_logs() as logs:
            for _ in range(3):
                await rates.admit("192.0.2.1")

    assert [each["event"] for each in logs] == ["rate_limits.redis_unavailable"]


@asynccontextmanager
async def silent_store(*, accepts: bool) -> AsyncIterator[tuple[SecretStr, list[object]]]:
    """Yield a store that never replies or has a full backlog, and the connections to it."""
    connections: list[object] = []
    ended = asyncio.Event()

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await ended.wait()
        writer.close()

    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        address = listening.getsockname()
        server = await asyncio.start_server(accept, sock=listening) if accepts else None
        with ExitStack() as stack:
            for _ in range(0 if accepts else 3):
                filling = stack.enter_context(socket.socket())
                filling.setblocking(False)
                filling.connect_ex(address)
            yield SecretStr(f"redis://127.0.0.1:{address[1]}"), connections
        ended.set()
        if server is not None:
            server.close()


class EndlessStorage(RedisStorage):
    """A store with a driver that never returns."""

    async def incr(self, *_arguments: object, **_options: object) -> int:
        """Never return."""
        await asyncio.Event().wait()
        return 0


async def test_driver_that_never_returns_delays_a_request_for_a_moment() -> None:
    storage = EndlessStorage("async+redis://127.0.0.1:1", implementation="redispy")
    rates = RateLimits(RateLimitSettings(address="1/minute"), storage, lambda: 600.0)

    async with asyncio.timeout(5):
        await rates.admit("192.0.2.1")
        await _refused(rates, "192.0.2.1")


async def test_server_that_is_not_redis_delays_no_request_and_is_named_in_the_log() -> None:
    async def count(serve: Serve) -> float:
        async with other_server(serve) as (port, _):
            url = SecretStr(f"redis://user:hunter2@127.0.0.1:{port}")
            async with open_storage(url) as storage:
                rates = RateLimits(RateLimitSettings(address="1/minute"), storage, lambda: 600.0)
                began = time.monotonic()
                await rates.admit("192.0.2.1")
                seconds = time.monotonic() - began
                await _refused(rates, "192.0.2.1")
        return seconds

    with capture_logs() as lines:
        seconds = [await count(serve) for serve in KINDS.values()]

    assert max(seconds) < 1
    assert {line["event"] for line in lines} == {"rate_limits.redis_unavailable"}
    assert {line["setting"] for line in lines} == {"POSTBUS_RATE_STORAGE_URL"}
    assert len(lines) == len(KINDS)
    assert "hunter2" not in json.dumps(lines)


@pytest.mark.parametrize(
    "address",
    [
        "redis://[::1]:6379/1",
        "rediss://user:p%40ss@redis.example",
        "redis://:password@redis.example",
        "unix:///run/redis.sock?db=1",
        " redis://redis.example ",
    ],
)
def test_address_of_redis_is_accepted(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    url = settings_with(monkeypatch, address).rate_storage_url

    assert url is not None
    assert url.get_secret_value() == address.strip()


@pytest.mark.parametrize(
    "address",
    [
        "redis.example:6379",
        "http://redis.example",
        "redis://redis.example:0",
        "redis://redis.example:70000",
        "redis://user:hunter2/x@redis.example",
        "redis://user:hunter2#x@redis.example",
        "redis://user:hunter2?x@redis.example",
        "redis://user:1234#hunter2@redis.example",
        "redis://redis.example?colour=hunter2",
        "redis://redis.example?socket_timeout=hunter2",
    ],
)
def test_malformed_address_of_redis_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with pytest.raises(ValidationError, match="the address of Redis must have") as raised:
        settings_with(monkeypatch, address)

    assert raised.value.errors()[0]["loc"] == ("rate_storage_url",)
    assert "hunter2" not in str(raised.value)


def settings_with(monkeypatch: pytest.MonkeyPatch, address: str) -> GatewaySettings:
    given = {"amqp_url": "amqp://u:p@a", "verification_keys": "{}", "rate_storage_url": address}
    for name, value in given.items():
        monkeypatch.setenv(f"POSTBUS_{name.upper()}", value)
    return GatewaySettings()


@pytest.mark.parametrize("accepts", [True, False])
async def test_unresponsive_store_delays_no_request(accepts: bool) -> None:
    async with silent_store(accepts=accepts) as (url, _), open_storage(url) as storage:
        rates = RateLimits(RateLimitSettings(address="1/minute"), storage, lambda: 600.0)
        async with asyncio.timeout(2):
            await rates.admit("192.0.2.1")
            await _refused(rates, "192.0.2.1")


async def test_concurrent_requests_use_few_connections_and_do_not_queue() -> None:
    async with silent_store(accepts=True) as (url, connections), open_storage(url) as storage:
        rates = RateLimits(RateLimitSettings(address="1000/minute"), storage, lambda: 600.0)
        async with asyncio.timeout(2):
            await asyncio.gather(*(rates.admit("192.0.2.1") for _ in range(500)))

    assert len(connections) <= 2 * 16


def test_documented_table_has_the_defaults() -> None:
    text = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    limits = ("rate_", "max_", "socket", "subscriptions_", "idle_", "login_")
    fields = GatewaySettings.model_fields | UsersSettings.model_fields
    for name, field in fields.items():
        if name.startswith(limits) and isinstance(field.default, str | int | float):
            default = str(field.default).removesuffix(".0")
            assert f"| `{name.upper()}` | `{default}` |" in text
    for method in METHODS.values():
        if method.rate_limit:
            service = ".".join(method.name.rsplit(".", 2)[1:])
            assert f"| `{service}` | `{method.rate_limit}` |" in text


@asynccontextmanager
async def limited(
    bus: MemoryBus, verifier: TokenVerifier, **rates: str
) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    """Yield a gateway with these rates, and a client."""
    settings = RateLimitSettings(methods=dict.fromkeys(METHODS, ""), **rates)
    counted = RateLimits(settings, BoundedStorage(), lambda: 600.0)
    app = build_app(bus, verifier, max_body_bytes=10_000, rates=counted)
    transport = httpx.ASGITransport(app)
    async with app.running(), httpx.AsyncClient(transport=transport, base_url="http://g") as client:

        async def ready() -> bool:
            parts: dict[str, bool] = (await client.get("/readyz")).json()["parts"]
            return parts["gateway.sessions"]

        await eventually(ready)
        yield app, client


async def test_response_has_the_remaining_rate_and_refusal_the_retry_time(
    bus: MemoryBus, verifier: TokenVerifier
) -> None:
    async with limited(bus, verifier, address="1/minute") as (_, client):
        first, second = await client.get("/v1/posts"), await client.get("/v1/posts")

    assert first.headers["RateLimit"] == '"address";r=0;t=60'
    assert first.headers["RateLimit-Policy"] == '"address";q=1;w=60'
    assert (second.status_code, second.json()["reason"]) == (429, "RATE_LIMITED")
    assert second.headers["Retry-After"] == "60"
    assert second.headers["RateLimit"] == '"address";r=0;t=60'


@pytest.mark.parametrize("path", ["/v1/nowhere", "/openapi.json", "/docs"])
async def test_paths_beside_the_contract_are_rate_limited(
    path: str, bus: MemoryBus, verifier: TokenVerifier
) -> None:
    async with limited(bus, verifier, address="1/minute") as (_, client):
        await client.get(path)
        refused = await client.get(path)

        assert (refused.status_code, refused.json()["reason"]) == (429, "RATE_LIMITED")
        for probe in ("/healthz", "/readyz", "/metrics"):
            assert (await client.get(probe)).status_code != 429


async def test_handshakes_of_websockets_count_for_the_address(
    bus: MemoryBus, verifier: TokenVerifier
) -> None:
    async with limited(bus, verifier, address="1/minute") as (app, _), listening(app) as port:
        url = f"ws://127.0.0.1:{port}/ws"
        async with connect(url):
            pass
        with pytest.raises(InvalidStatus) as refused:
            await connect(url)

    assert refused.value.response.status_code == 429
    assert refused.value.response.headers["Retry-After"] == "60"


INVALID_HANDSHAKES = {
    "key": "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n",
    "version": "Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "no fields": "",
    "long field": f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'x' * 9000}\r\n",
}


@pytest.mark.parametrize("fields", INVALID_HANDSHAKES.values(), ids=INVALID_HANDSHAKES.keys())
async def test_invalid_handshakes_count_for_the_address(
    bus: MemoryBus, verifier: TokenVerifier, fields: str
) -> None:
    async def response(port: int, address: str) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            f"GET /ws HTTP/1.1\r\nHost: gateway\r\nX-Forwarded-For: {address}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\n{fields}\r\n"
        )
        writer.write(head.encode() + b"\x81\x82\0\0\0\0{}" * 100)
        async with asyncio.timeout(5):
            line = await reader.readline()
            _, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(line.split()[1]), json.loads(body)["reason"]

    async with limited(bus, verifier, address="2/minute") as (app, _), listening(app) as port:
        responses = [await response(port, "192.0.2.1") for _ in range(4)]
        other = await response(port, "192.0.2.2")

    assert responses[0] == responses[1] == other
    assert other[0] in (400, 426, 431)
    assert responses[2:] == [(429, "RATE_LIMITED")] * 2


async def test_requests_with_invalid_tokens_count_for_the_address(
    bus: MemoryBus, verifier: TokenVerifier
) -> None:
    bad = {"Authorization": "Bearer x.y.z"}
    async with limited(bus, verifier, address="1/minute") as (_, client):
        responses = [await client.get("/v1/me", headers=bad) for _ in range(2)]

    outlines = [(response.status_code, response.json()["reason"]) for response in responses]
    assert outlines == [(401, "TOKEN_INVALID"), (429, "RATE_LIMITED")]


async def test_calls_over_rest_and_websocket_count_together_for_a_user(
    bus: MemoryBus, verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    token = tokens.token("alice")
    call = {"id": "2", "call": {"method": READ.name}}
    async with limited(bus, verifier, user="1/minute") as (app, client):
        first = await client.get("/v1/me", headers={"Authorization": f"Bearer {token}"})
        async with open_socket(app) as socket:
            await socket.request({"id": "1", "authenticate": {"accessToken": token}})
            second = await socket.request(call)

    assert first.status_code == 200
    assert second["error"]["reason"] == "RATE_LIMITED"
    assert second["error"]["retryAfter"] == "60s"
