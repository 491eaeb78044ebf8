"""Random requests by schemathesis: the REST interface behaves as its document describes."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.people import sign_up
from tests.system import System

Unique = Callable[[str], str]


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_schemathesis_finds_no_contradiction_to_the_document(
    system: System, client: httpx.AsyncClient, unique: Unique, tmp_path: Path
) -> None:
    alice = await sign_up(client, unique("alice"))
    await client.post("/v1/posts", json={"title": "A target"}, headers=alice.headers)

    attack = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        "run",
        f"{system.url}/openapi.json",
        f"--header=Authorization: Bearer {alice.token}",
        "--max-examples=40",
        "--request-timeout=20",
        "--generation-database=none",
        # These operations would end the session of the test.
        "--exclude-path-regex=^/v1/auth/(logout|sessions)",
        "--exclude-name=DELETE /v1/me",
        # Schemas cannot express all rules, such as a signed page token or a title that must stay,
        # nor every form that ProtoJSON accepts, such as null.
        "--exclude-checks=positive_data_acceptance,negative_data_rejection",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await attack.communicate()

    assert attack.returncode == 0, output.decode()
    status, _ = await system.readiness()
    assert status == 200
