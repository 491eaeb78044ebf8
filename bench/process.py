"""Processor time and memory of processes, from /proc."""

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["cpu_seconds", "pid_listening"]


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the processor time of processes and their threads, in seconds."""
    tick = os.sysconf("SC_CLK_TCK")
    used = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / tick


def pid_listening(port: int) -> int | None:
    """Return the process that listens on a TCP port of this machine, None if it is not visible."""
    sockets = {
        f"socket:[{fields[9]}]"
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if (fields := line.split())[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
    }
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(each) in sockets for each in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:  # the process has ended, or belongs to another user
            continue
    return None
