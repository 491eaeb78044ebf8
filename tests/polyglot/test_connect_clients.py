"""The official Connect clients call the running system with the published contracts."""

import asyncio
import json
import shutil
from pathlib import Path
from secrets import token_hex
from typing import Any

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
