"""Run a command and restart it when files change.

Usage: `python -m tools.dev.reload PID PATHS -- COMMAND`.

Ends the command and itself on SIGTERM and when process PID has ended, so that no process survives
a `just dev` that was killed.
"""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from watchfiles import watch

from tools.paths import ROOT
from tools.servers.processes import identity
from tools.servers.signals import end_on_signals

_STOP_SECONDS = 1.5
_LOOK_MILLISECONDS = 500


def main(owner: int, paths: Sequence[str], command: Sequence[str]) -> None:
    """Run until a signal, or until the owner process has ended."""
    process = subprocess.Popen(command)
    told = False
    try:
        for changes in watch(
            *paths,
            rust_timeout=_LOOK_MILLISECONDS,
            yield_on_timeout=True,
            raise_interrupt=False,
        ):
            if identity(owner) is None:
                return
            if changes:
                changed = sorted(str(Path(path).relative_to(ROOT)) for _, path in changes)
                print(f"restarting: {', '.join(changed[:3])} changed", flush=True)
                stop(process)
                process = subprocess.Popen(command)
            elif process.poll() is not None and not told:
                print(f"ended with code {process.returncode}; waiting for a change", flush=True)
            told = process.poll() is not None
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, and SIGKILL if the process does not end."""
    process.terminate()
    try:
        process.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    split = sys.argv.index("--")
    logging.getLogger("watchfiles").setLevel(logging.ERROR)  # a signal is expected here
    end_on_signals()
    main(int(sys.argv[1]), sys.argv[2:split], sys.argv[split + 1 :])
