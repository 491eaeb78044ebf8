"""The published wheel in an empty project: its classes and the API read each other's JSON."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import grpc_tools
import httpx
import pytest

from postbus.bus.v1 import Reply
from postbus.posts.v1 import CreatePostRequest, CreatePostResponse, Post, PostStatus
from shared.wire import decode, encode
from tests.gateway.conftest import Worker
from tests.tokens import TokenMaker
from tools.paths import ROOT
from tools.uv import uv

pytestmark = pytest.mark.long

WRITE = """
from postbus.posts.v1 import CreatePostRequest, PostStatus
print(CreatePostRequest(title="Hi", tags=["a"], status=PostStatus.DRAFT).to_json())
"""
READ = """
import sys
from datetime import UTC, datetime
from postbus.posts.v1 import Post, PostStatus
post = Post().from_json(sys.argv[1])
assert post.version == 9_007_199_254_740_993
assert post.status == PostStatus.DRAFT
assert post.created_at == datetime(1970, 1, 1, tzinfo=UTC)
assert post.published_at is None
assert Post.FromString(bytes(post)) == post == Post.from_dict(post.to_dict())
print("read")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an environment in which only the wheel is installed."""
    folder = tmp_path_factory.mktemp("project")
    run(ROOT, uv(), "build", "--quiet", "--wheel", "gen", "--out-dir", str(folder))
    run(folder, uv(), "venv", "--quiet", "--no-project", "venv")
    [wheel] = folder.glob("*.whl")
    run(folder, uv(), "pip", "install", "--quiet", "--python", "venv", "--no-deps", str(wheel))
    return folder


def run(folder: Path, *command: str) -> str:
    # the dependencies without gen/, because editable installs do not work from PYTHONPATH
    dependencies = str(Path(grpc_tools.__file__).parents[1])
    result = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": dependencies, "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    return result.stdout.strip()


def python(project: Path, program: str, *arguments: str) -> str:
    return run(project, str(project / "venv/bin/python"), "-c", program, *arguments)


async def test_api_accepts_the_json_of_a_class_of_the_wheel(
    project: Path, gateway: httpx.AsyncClient, worker: Worker, tokens: TokenMaker
) -> None:
    document = python(project, WRITE)
    worker.reply = Reply(payload=encode(CreatePostResponse(post=Post(id="1"))))
    headers = {
        "Authorization": f"Bearer {tokens.token('alice')}",
        "Content-Type": "application/json",
    }

    response = await gateway.post("/v1/posts", content=document, headers=headers)

    assert response.status_code == 201
    [(_, request)] = worker.requests
    assert decode(CreatePostRequest, request.payload) == CreatePostRequest(
        title="Hi",
        tags=["a"],
        status=PostStatus.DRAFT,  # type: ignore[arg-type]  # an enum member is an int to mypy
    )


async def test_class_of_the_wheel_reads_the_json_of_the_api(
    project: Path, gateway: httpx.AsyncClient, worker: Worker
) -> None:
    post = Post(
        id="018f3f6e-0000-7000-8000-000000000001",
        version=9_007_199_254_740_993,  # no JavaScript number holds it
        status=PostStatus.DRAFT,  # type: ignore[arg-type]  # an enum member is an int to mypy
        created_at=datetime(1970, 1, 1, tzinfo=UTC),
    )
    worker.reply = Reply(payload=encode(CreatePostResponse(post=post)))  # GetPost's is alike

    response = await gateway.get(f"/v1/posts/{post.id}")

    assert python(project, READ, response.text) == "read"
