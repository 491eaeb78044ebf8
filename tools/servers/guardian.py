"""Ends the processes of a command that is killed.

A command ends its processes itself, unless it gets SIGKILL. Then the guardian does: a second
process that sees the end of the command by the end of a pipe.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Final

from tools.paths import ROOT
from tools.servers.processes import identity, wait_until

__all__ = ["end_with_this_process", "kill_group"]

_GRACE_SECONDS: Final = 10.0
"""Time for which a process may clean up after SIGTERM."""


def end_with_this_process(pid: int) -> None:
    """Let a child end with this process at the latest, even after SIGKILL to this one.

    It gets SIGTERM, and SIGKILL ten seconds later; if it leads a process group, the whole group
    gets SIGKILL.
    """
    # either has ended: the child, or the guardian
    with suppress(ProcessLookupError, BrokenPipeError):
        leads = os.getpgid(pid) == pid
        if known := identity(pid):
            os.write(_pipe(), f"{int(leads)} {known}\n".encode())


def kill_group(leader: int) -> None:
    """Send SIGKILL to a process group, also if its leader has ended."""
    with suppress(ProcessLookupError, PermissionError):  # macOS: all members have ended
        os.killpg(leader, signal.SIGKILL)


@cache
def _pipe() -> int:
    """Start the guardian, in a session of its own; return the descriptor for its input."""
    reading, writing = os.pipe()  # not inherited by children
    guardian = subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=reading, cwd=ROOT, start_new_session=True
    )
    os.close(reading)
    guardian.returncode = 0  # it outlives this process, and Popen would warn of that
    return writing


@dataclass(frozen=True, slots=True)
class _Child:
    identity: str
    leads: bool

    @property
    def pid(self) -> int:
        return int(self.identity.split()[0])

    def runs(self) -> bool:
        return identity(self.pid) == self.identity


def main(lines: Iterable[str]) -> None:
    """Read process ids until the end of `lines`, then end the processes that still run."""
    children: list[_Child] = []
    for line in lines:
        leads, _, known = line.rstrip("\n").partition(" ")
        children = [each for each in children if each.leads or each.runs()]
        children.append(_Child(known, leads == "1"))
    running = [each for each in children if each.runs()]
    for child in running:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)
    wait_until(lambda: not any(each.runs() for each in running), seconds=_GRACE_SECONDS)
    for child in children:
        if child.leads:
            kill_group(child.pid)
        elif child.runs():
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.stdin)
