"""The official conformance suite of the Connect protocol (connectrpc.com/conformance)."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
import pytest

from postbus_runtime.options import Access
from tests.system import WITHOUT_RATES, free_port
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
        "POSTBUS_PORT": str(free_port()),
        "POSTBUS_MAX_BODY_BYTES": str(_LIMIT),
        "POSTBUS_METADATA_HEADERS": "x-conformance-test",
        **WITHOUT_RATES,
    }


@contextmanager
def program(environment: dict[str, str], *command: str) -> Iterator[None]:
    """Run a program of Python."""
    with subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stdout=sys.stderr, cwd=ROOT
    ) as process:
        try:
            yield
        finally:
            process.terminate()


def wait_until_served(url: str) -> None:
    """Wait until a call gets the answer of the worker."""
    path = f"{url}/connectrpc.conformance.v1.ConformanceService/Unimplemented"
    while True:
        with suppress(httpx.TransportError):
            if httpx.post(path, json={}).json().get("code") == "unimplemented":
                return
        time.sleep(0.2)  # within the timeout of the test


@pytest.mark.long
@pytest.mark.timeout(180)
def test_every_case_of_the_connect_conformance_suite_passes(
    runner: Path, environment: dict[str, str]
) -> None:
    config = str(ROOT / "tests/conformance/config.yaml")
    port = environment["POSTBUS_PORT"]
    server = [sys.executable, "-m", "tests.conformance.server", port, str(_LIMIT)]
    with program(environment, "tests.conformance.worker"), program(environment, "gateway"):
        wait_until_served(f"http://127.0.0.1:{port}")
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
