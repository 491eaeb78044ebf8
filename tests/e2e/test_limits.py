"""Requests to the running gateway that are too large, or that are not HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest

from tests.system import System
from tests.tokens import TokenMaker


async def response_to(system: System, sent: bytes) -> bytes:
    """Send raw bytes and return all bytes that the gateway sends until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
    writer.write(sent)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"nonsense\r\n\r\n", 400, b"MALFORMED_HTTP"),
        (b"GET /" + b"a" * 100_000, 431, b"HEAD_TOO_LARGE"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000, 431, b"HEAD_TOO_LARGE"),
    ],
)
async def test_bad_head_is_a_problem_and_ends_the_connection(
    system: System, sent: bytes, status: int, reason: bytes
) -> None:
    response = await response_to(system, sent)

    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in response
    assert reason in response


async def test_body_beyond_the_limit_is_a_problem(client: httpx.AsyncClient) -> None:
    async def three_megabytes() -> AsyncIterator[bytes]:
        for _ in range(48):
            yield b" " * 65536

    response = await client.post(
        "/v1/auth/login", content=three_megabytes(), headers={"Content-Type": "application/json"}
    )

    assert (response.status_code, response.json()["reason"]) == (413, "BODY_TOO_LARGE")


async def test_settings_of_limits_and_headers_take_effect(
    system: System, tokens: TokenMaker
) -> None:
    page = "https://app.example.com"
    settings = {
        "POSTBUS_HSTS_SECONDS": "60",
        "POSTBUS_ALLOWED_ORIGINS": page,
        "POSTBUS_OPERATOR_NETWORKS": "10.0.0.0/8",
        "POSTBUS_RATE_ADDRESS": "1000/hour",
        "POSTBUS_RATE_USER": "900/hour",
        "POSTBUS_RATE_USER_CHANGES": "1/hour",
        "POSTBUS_MAX_BODY_BYTES": "1000",
        "POSTBUS_IDLE_SECONDS": "1",
        "POSTBUS_MAX_CONNECTIONS_PER_ADDRESS": "3",
        "POSTBUS_MAX_CONNECTIONS": "4",
    }
    user = {"Authorization": f"Bearer {tokens.token('alice')}"}
    async with system.another_gateway(**settings) as url:
        async with httpx.AsyncClient(base_url=url, headers={"Origin": page}) as client:
            listed = await client.get("/v1/posts")
            refused = await client.post("/v1/posts", content=b" " * 2025)  # 1024 for frames
            for _ in range(2):
                changed = await client.post("/v1/posts", json={}, headers=user)
            metrics = await client.get("/metrics")
        statuses = await statuses_of_connections(int(url.rpartition(":")[2]))

    assert listed.headers["strict-transport-security"] == "max-age=60; includeSubDomains"
    assert "server" not in listed.headers
    assert listed.headers["ratelimit-policy"] == '"address";q=1000;w=3600'
    assert changed.status_code == 429
    assert '"user-changes";q=1;w=3600, "user";q=900;w=3600' in changed.headers["ratelimit-policy"]
    assert refused.status_code == 413
    assert refused.headers["access-control-allow-origin"] == page
    assert metrics.status_code == 403
    assert statuses == [200, 200, 200, 429, 200, 503]


async def statuses_of_connections(port: int) -> list[int]:
    """Open four connections from one address, two from further ones; return their statuses.

    Returns once the gateway has closed all of them.
    """
    statuses = []
    async with AsyncExitStack() as stack, asyncio.timeout(10):
        readers = []
        for address in ("127.0.0.1",) * 4 + ("127.0.0.2", "127.0.0.3"):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=(address, 0)
            )
            stack.callback(writer.close)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            statuses.append(int((await reader.readline()).split()[1]))
            readers.append(reader)
        for reader in readers:
            await reader.read()
    return statuses
