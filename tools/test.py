"""`just test`: pytest on real servers."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from tools.paths import ROOT
from tools.servers import servers
from tools.servers.guardian import end_with_this_process, kill_group

__all__ = ["run_group", "test"]

_STOP_SECONDS: Final = 15.0
"""Time in which the fixtures of pytest end their processes after a signal."""


def test(arguments: Sequence[str]) -> int:
    """Run pytest with the servers' addresses in its environment; return its exit code.

    The tests use databases and virtual hosts of their own; a running `just dev` is not affected.
    """
    with servers("test") as addresses:
        command = [sys.executable, "-m", "pytest", *arguments]
        return run_group(command, os.environ | addresses.as_environment())


def run_group(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command as a process group of its own, and return its exit code.

    The whole group ends with the command and with this process, whichever of them gets a signal. A
    signal to this process, or Ctrl-C, reaches the command as SIGTERM: in the same group, Ctrl-C
    would reach it twice, and the second time interrupt its clean-up.
    """
    process = subprocess.Popen(command, env=dict(environment), cwd=ROOT, start_new_session=True)
    try:
        end_with_this_process(process.pid)
        return process.wait()
    except BaseException:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_STOP_SECONDS)
        raise
    finally:
        kill_group(process.pid)
        process.wait()
