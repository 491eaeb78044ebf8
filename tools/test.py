"""`just test`: pytest on real servers."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from tools.paths import ROOT
from tools.servers import servers

_STOP_SECONDS = 5


def test(arguments: Sequence[str]) -> int:
    """Run pytest with the servers' addresses in its environment; return its exit code.

    The tests use databases and virtual hosts of their own; a running `just dev` is not affected.
    """
    with servers("test") as addresses:
        pytest = subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments],
            env=os.environ | addresses.as_environment(),
            cwd=ROOT,
        )
        return _wait(pytest)


def _wait(pytest: subprocess.Popen[bytes]) -> int:
    """Wait for pytest; after an interrupt, let it clean up."""
    try:
        return pytest.wait()
    except KeyboardInterrupt:  # Ctrl-C has also reached pytest
        _end(pytest)
        raise
    except SystemExit:
        pytest.send_signal(signal.SIGINT)
        _end(pytest)
        raise


def _end(pytest: subprocess.Popen[bytes]) -> None:
    try:
        pytest.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.kill()
        pytest.wait()
