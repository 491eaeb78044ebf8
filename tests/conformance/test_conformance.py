"""The official conformance suite of the Connect protocol (connectrpc.com/conformance)."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from postbus_runtime.options import Access
from tests.tokens import TokenMaker
from tools.contracts.generate.further import generate_further
from tools.paths import DEV, ROOT

_MODULE: Final = "connectrpc.com/conformance"
_VERSION: Final = "v1.0.7"
_CASES: Final = 292
"""The number of cases of `config.yaml` in this version: a narrower file also passes."""
_LIMIT: Final = 204_800
"""Largest message in bytes, as the suite expects it."""
_CONTRACTS: Final = ("config", "server_compat", "service")


@pytest.fixture(scope="module")
def go() -> str:
    found = shutil.which("go")
    if found is None:
        pytest.skip("the Connect conformance suite needs the Go toolchain")
    return found


@pytest.fixture(scope="module")
def runner(go: str) -> Path:
    """The runner, built once for each version."""
    target = DEV / "conformance" / _VERSION
    program = target / "connectconformance"
    if not program.exists():
        command = [go, "install", f"{_MODULE}/cmd/connectconformance@{_VERSION}"]
        subprocess.run(command, env=os.environ | {"GOBIN": str(target)}, check=True)
    return program


@pytest.fixture(scope="module")
def generated(go: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite's contract, generated beside that of Postbus."""
    folder, target = tmp_path_factory.mktemp("protos"), tmp_path_factory.mktemp("gen")
    command = [go, "mod", "download", "-json", f"{_MODULE}@{_VERSION}"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    [module] = re.findall(r'"Dir": "(.*)"', found.stdout)
    package = Path("connectrpc/conformance/v1")
    (folder / package).mkdir(parents=True)
    for name in _CONTRACTS:
        source = Path(module) / "proto" / package / f"{name}.proto"
        (folder / package / f"{name}.proto").write_bytes(source.read_bytes())
    unserved = generate_further(folder, "connectrpc", Access.PUBLIC, target)
    assert [name.rpartition(".")[2] for name in unserved] == ["ClientStream", "BidiStream"]
    return target


@pytest.fixture
def environment(generated: Path, vhost: str, tokens: TokenMaker) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(generated), str(ROOT)]),
        "POSTBUS_AMQP_URL": vhost,
        "POSTBUS_VERIFICATION_KEYS": tokens.key_set,
    }


@contextmanager
def program(environment: dict[str, str], ready: str, *command: str) -> Iterator[str]:
    """Run a program; yields the line of its output that contains `ready`."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        try:
            yield next(line for line in process.stdout if ready in line)
        finally:
            process.terminate()


@pytest.mark.long
@pytest.mark.timeout(120)
def test_every_case_of_the_connect_conformance_suite_passes(
    runner: Path, environment: dict[str, str]
) -> None:
    config = str(ROOT / "tests/conformance/config.yaml")
    limit = str(_LIMIT)
    with (
        program(environment, "worker.ready", "tests.conformance.worker"),
        program(environment, "listening", "tests.conformance.gateway", limit) as listening,
    ):
        server = [sys.executable, "-m", "tests.conformance.server", listening.split()[-1], limit]
        done = subprocess.run(
            [runner, "--mode", "server", "--conf", config, "-v", "--", *server],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    summary = done.stdout[-10_000:]
    assert f"Total cases: {_CASES}\n{_CASES} passed, 0 failed\n" in summary, summary
    assert done.returncode == 0
