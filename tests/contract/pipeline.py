"""A generated service with every kind of field, run by a gateway and a worker in one process."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from tests.tokens import TokenMaker
from tools.contracts.generate.__main__ import generate

__all__ = ["Pipeline", "running"]

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

_LENGTH = """
syntax = "proto3";
package acme.units.v1;
message Length { double meters = 1; Unit unit = 2; }
enum Unit { UNIT_UNSPECIFIED = 0; UNIT_METER = 1; }
"""


class Pipeline:
    """The generated package, and the process of the gateway that serves it."""

    def __init__(self, package: Path, worker: "subprocess.Popen[str]", token: str) -> None:
        self.package = package
        self.token = token
        self._worker = worker
        self._pool = DescriptorPool()
        data = (package / "contracts.binpb").read_bytes()
        for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
            self._pool.Add(file)

    def google(self, name: str) -> Any:
        return GetMessageClass(self._pool.FindMessageTypeByName(f"postbus.kinds.v1.{name}"))

    def request(self, verb: str, url: str, body: Any = None) -> tuple[int, Any]:
        """Send a value as JSON, or a string unchanged; return the status and JSON received."""
        text = body if body is None or isinstance(body, str) else json.dumps(body)
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(json.dumps([verb, url, text]) + "\n")
        self._worker.stdin.flush()
        status, response = json.loads(self._worker.stdout.readline())
        return status, response

    def request_binary(self, verb: str, url: str, message: Any, response: str) -> tuple[int, Any]:
        """Send a message in binary; return the status, and the message received or the problem."""
        data = None if message is None else message.SerializeToString().hex()
        status, got = self.request(f"BINARY {verb}", url, data)
        if isinstance(got, dict):
            return status, got
        media_type, content = got
        assert media_type == "application/protobuf"
        return status, self.google(response).FromString(bytes.fromhex(content))

    def call(self, method: str, request: str) -> Any:
        """Call a method over the WebSocket with a JSON text; return the result or error frame."""
        method = f"postbus.kinds.v1.KindsService.{method}"
        text = f'{{"id": "2", "call": {{"method": "{method}", "request": {request}}}}}'
        return self.request("CALL", self.token, text)[1]

    def call_bytes(self, method: str, payload: bytes) -> tuple[bytes | None, list[tuple[str, str]]]:
        """Call a method on the bus; return the response, None if refused, and the violations."""
        route = f"postbus.kinds.v1.KindsService.{method}"
        _, response = self.request("BYTES", route, payload.hex())
        if "reason" in response:
            assert response["reason"] == "INVALID_FIELDS"
            return None, [(field, rule) for field, rule in response["violations"]]
        return bytes.fromhex(response["payload"]), []


@contextmanager
def running(project: Path) -> Iterator[Pipeline]:
    """Generate the package of pipeline.proto in an empty folder, and run it."""
    shutil.copytree(ROOT / "proto", project / "proto")
    shutil.copy(ROOT / "buf.yaml", project)
    target = project / "proto/postbus/kinds/v1"
    target.mkdir(parents=True)
    kinds = (
        (HERE / "kinds.proto").read_text().replace("package kinds.v1", "package postbus.kinds.v1")
    )
    (target / "kinds.proto").write_text(kinds)
    shutil.copy(HERE / "pipeline.proto", target)
    target.with_name("v2").mkdir()
    shutil.copy(HERE / "pipeline_v2.proto", target.with_name("v2"))
    vendored = project / "third_party/acme/units/v1/length.proto"
    vendored.parent.mkdir(parents=True)
    vendored.write_text(_LENGTH)
    package = project / "site/postbus"
    package.parent.mkdir()
    generate(project, package)
    tokens = TokenMaker()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.contract.pipeline_worker", tokens.key_set],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{package.parent}{os.pathsep}{ROOT}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        yield Pipeline(package, worker, tokens.token("alice"))
        assert worker.stdin is not None
        worker.stdin.close()
