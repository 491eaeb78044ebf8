"""The REST interface under attack by schemathesis: what the document says is what happens."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.people import sign_up
from tests.system import System

Unique = Callable[[str], str]


@pytest.mark.timeout(180)
async def test_attacks_by_the_document_find_no_contradiction(
    system: System, client: httpx.AsyncClient, unique: Unique, tmp_path: Path
) -> None:
    alice = await sign_up(client, unique("alice"))
    await client.post("/v1/posts", json={"title": "A target"}, headers=alice.headers)

    attack = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        "run",
        f"{system.url}/openapi.json",
        f"--header=Authorization: Bearer {alice.token}",
        "--max-examples=15",
        "--request-timeout=20",
        "--generation-database=none",
        # They would end the attacker's session, and with it the attack.
        "--exclude-path-regex=^/v1/auth/(logout|sessions)",
        "--exclude-name=DELETE /v1/me",
        # Rules that no schema can say: a page token of ours, a title that is not taken away.
        # Schemas show the canonical form; ProtoJSON wants more to be accepted, such as null.
        "--exclude-checks=positive_data_acceptance,negative_data_rejection",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await attack.communicate()

    assert attack.returncode == 0, output.decode()
    status, _ = await system.readiness()
    assert status == 200
