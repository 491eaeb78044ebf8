"""The official Connect clients call the running system with the published contracts."""

import asyncio
import json
import shutil
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import pytest

from tests.people import sign_up
from tests.system import System
from tools.node import node_environment, node_modules
from tools.paths import ROOT

pytestmark = pytest.mark.long

DESCRIPTORS = ROOT / "gen/postbus/contracts.binpb"
INFO, REQUEST = "google.rpc.ErrorInfo", "google.rpc.BadRequest"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Return the path of the JavaScript program, beside its packages."""
    (tmp_path / "node_modules").symlink_to(node_modules())
    return Path(shutil.copy(Path(__file__).with_name("connect.mjs"), tmp_path))


async def test_javascript_clients_call_and_stream(system: System, script: Path) -> None:
    async with httpx.AsyncClient(base_url=system.url) as client:
        alice = await sign_up(client, f"js{token_hex(6)}")

    process = await asyncio.create_subprocess_exec(
        *("node", str(script), str(DESCRIPTORS), system.url, alice.token),
        env=node_environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()

    assert process.returncode == 0
    answers: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
    assert [each.pop("name") for each in answers] == ["web", "node"] * 2
    for answer in answers:
        assert answer == {
            "title": "Hé",
            "body": 3000,
            "cases": ["account", "post", "session"],
            "invalid": {"code": "InvalidArgument", "details": [INFO, REQUEST]},
            "anonymous": {"code": "Unauthenticated", "details": [INFO]},
            "missing": {"code": "NotFound", "details": [INFO]},
            "cancelled": {"code": "Canceled", "details": []},
        }
