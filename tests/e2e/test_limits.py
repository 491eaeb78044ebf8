"""Requests to the running gateway that are too large, or that are not HTTP."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.system import System


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
