"""The official Connect clients call the running system with the published contracts."""

import asyncio
import json
import shutil
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import httpx
import pytest
from connectrpc.client import ConnectClientSync
from connectrpc.code import Code as ConnectCode
from connectrpc.codec import Codec
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType

from postbus.registry import METHODS
from shared.wire import message_class
from tests.people import sign_up
from tests.polyglot.programs import GO, build
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


async def answers_of(system: System, *program: str) -> dict[str, list[dict[str, Any]]]:
    """Run a program with the gateway's URL and a token; return its answers by their names."""
    async with httpx.AsyncClient(base_url=system.url) as client:
        user = await sign_up(client, f"connect{token_hex(6)}")
    process = await asyncio.create_subprocess_exec(
        *(*program, system.url, user.token), env=node_environment(), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0
    answers: dict[str, list[dict[str, Any]]] = {}
    for answer in map(json.loads, output.splitlines()):
        answers.setdefault(answer.pop("name"), []).append(answer)
    return answers


EXPECTED: Final = {
    "title": "Hé",
    "body": 3000,
    "cases": ["account", "post", "session"],
    "invalid": {"code": "invalid_argument", "details": [INFO, REQUEST]},
    "anonymous": {"code": "unauthenticated", "details": [INFO]},
    "missing": {"code": "not_found", "details": [INFO]},
    "cancelled": {"code": "canceled", "details": []},
}


async def test_javascript_clients_call_and_stream(system: System, script: Path) -> None:
    answers = await answers_of(system, "node", str(script), str(DESCRIPTORS))

    assert answers == {"web": [EXPECTED] * 2, "node": [EXPECTED] * 2}  # in JSON and binary


@pytest.mark.timeout(600)  # the first build takes minutes
async def test_go_client_calls_and_streams(system: System) -> None:
    program = await asyncio.to_thread(build, GO)

    answers = await answers_of(system, str(program / "program"), "connect")

    assert answers == {"binary": [EXPECTED], "json": [EXPECTED]}


@pytest.mark.parametrize(
    "codec", [google_protobuf_binary_codec(), google_protobuf_json_codec()], ids=["binary", "json"]
)
async def test_python_client_calls_and_streams(system: System, codec: Codec) -> None:
    async with httpx.AsyncClient(base_url=system.url) as client:
        alice = await sign_up(client, f"py{token_hex(6)}")

    def run() -> None:  # its requests and responses are compressed
        with ConnectClientSync(system.url, codec=codec) as client:
            post = message_class("postbus.posts.v1.CreatePostRequest")(title="Hé", body="b" * 3000)
            created: Any = client.execute_unary(
                request=post, method=info("PostsService.CreatePost"), headers=alice.headers
            )
            found: Any = client.execute_unary(
                request=message_class("postbus.posts.v1.GetPostRequest")(id=created.post.id),
                method=info("PostsService.GetPost"),
                headers=alice.headers,
                timeout_ms=5000,
                use_get=True,
            )
            assert found.post.body == "b" * 3000
            items: list[Any] = list(
                client.execute_server_stream(
                    request=message_class("postbus.posts.v1.ExportMeRequest")(),
                    method=info("ExportService.ExportMe"),
                    headers=alice.headers,
                )
            )
            assert [each.post.title for each in items if each.HasField("post")] == ["Hé"]
            with pytest.raises(ConnectError) as raised:
                client.execute_unary(request=post, method=info("PostsService.CreatePost"))
            assert raised.value.code is ConnectCode.UNAUTHENTICATED
            assert [each.type_name for each in raised.value.details] == [INFO]

    await asyncio.to_thread(run)


def info(name: str) -> MethodInfo[Any, Any]:
    """Return the client's description of a method."""
    method = METHODS[f"postbus.posts.v1.{name}"]
    return MethodInfo(
        name=method.name.rpartition(".")[2],
        service_name=method.service,
        input=message_class(method.request_name),
        output=message_class(method.response_name),
        idempotency_level=IdempotencyLevel[method.idempotency],
        stream_type=StreamType.SERVER_STREAM if method.streams else StreamType.UNARY,
    )
