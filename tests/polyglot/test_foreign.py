"""A JavaScript program with another AMQP library as client and as worker."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from postbus.posts.v1 import GetPostRequest, PostsServiceStub
from shared.bus import ServiceChannel
from shared.bus.amqp import connect
from tests.conftest import Place, new_vhost
from tests.system import System
from tools.node import node_environment, node_modules
from tools.paths import ROOT

pytestmark = pytest.mark.long

POST_ID = "018f3f6e-0000-7000-8000-000000000001"
POSTS = "postbus.posts.v1.PostsService"


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the program, beside its packages."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "node_modules").symlink_to(node_modules())
    return Path(shutil.copy(Path(__file__).with_name("foreign.mjs"), folder))


@asynccontextmanager
async def foreign(script: Path, url: str, *arguments: str) -> AsyncIterator[asyncio.StreamReader]:
    """Run the program; yield its output."""
    descriptors = str(ROOT / "gen/postbus/contracts.binpb")
    process = await asyncio.create_subprocess_exec(
        "node",
        str(script),
        descriptors,
        url,
        *arguments,
        env=node_environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def line(output: asyncio.StreamReader) -> Any:
    async with asyncio.timeout(20):
        return json.loads(await output.readline())


@pytest.mark.parametrize(
    ("method", "request_", "answer"),
    [
        (f"{POSTS}.ListPosts", {"authorId": POST_ID}, {"response": {}}),
        (
            f"{POSTS}.ListPosts",
            {"pageSize": 101},
            {"error": {"code": 3, "reason": "INVALID_FIELDS"}},
        ),
        (f"{POSTS}.GetPost", {"id": POST_ID}, {"error": {"code": 5, "reason": "POST_NOT_FOUND"}}),
        ("postbus.bus.v1.HealthService.Check", {}, {"returned": True}),
    ],
)
async def test_foreign_client_calls_a_worker(
    system: System, place: Place, script: Path, method: str, request_: Any, answer: Any
) -> None:
    await system.until_ready()

    async with foreign(
        script, place.amqp_url, "operator", "call", method, json.dumps(request_)
    ) as output:
        assert await line(output) == answer


async def test_foreign_worker_answers_a_client(run_id: str, script: Path) -> None:
    response = {"post": {"id": POST_ID, "title": "From afar", "version": "7"}}
    async with (
        new_vhost(f"{run_id}_foreign") as url,
        foreign(script, url, "posts", "serve", f"{POSTS}.GetPost", json.dumps(response)) as output,
        connect(SecretStr(url), "test") as bus,
    ):
        assert await line(output) == "READY"
        await bus.wait_ready()
        stub = PostsServiceStub(ServiceChannel(bus))

        answer = await stub.get_post(GetPostRequest(id=POST_ID))

        assert (answer.post.title, answer.post.version) == ("From afar", 7)
        assert await line(output) == {"request": {"id": POST_ID}}
