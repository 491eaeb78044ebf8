"""The workers of the benchmarks serve the contract of today."""

import os
import subprocess
import sys

import pytest

from tools.paths import ROOT

_SERVE = """
import runpy, sys
from shared.bus import Dispatcher
from shared.runtime.worker import Health
Dispatcher("posts", [runpy.run_path(sys.argv[1])["Posts"](), Health({})], None, None)
"""


@pytest.mark.parametrize("program", ["rpc/peers/postbus_rpc.py", "http/peers/postbus_worker.py"])
def test_worker_of_a_benchmark_has_a_handler_of_every_method(program: str) -> None:
    path = ROOT / "bench" / program
    needed = {
        "BENCH_URL": "amqp://u:p@127.0.0.1",
        "BENCH_PAYLOAD": str(path.parent / "payload.json"),
        "PYTHONPATH": str(path.parent),
    }

    loaded = subprocess.run(
        [sys.executable, "-c", _SERVE, str(path)],
        env=os.environ | needed,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (loaded.returncode, loaded.stderr) == (0, "")
