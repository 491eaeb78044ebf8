"""Leases on the local servers. The servers stop when the last lease is released.

A lease is a file. The lease of a command names its process, so the lease of a killed process has
no effect; the lease of `just up` lasts until `just down`.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tools.paths import DEV
from tools.servers.processes import identity, recorded

_FOLDER = DEV / "leases"
_LASTING = "up"


@contextmanager
def exclusively() -> Iterator[None]:
    """Hold the lock under which servers start and stop and leases change."""
    DEV.mkdir(exist_ok=True)
    with (DEV / "servers.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("servers: waiting for another command that starts or stops them", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def acquire(command: str) -> Path:
    """Acquire a lease for this process; `command` is its name in messages."""
    lease = _FOLDER / f"{command}-{os.getpid()}"
    _FOLDER.mkdir(parents=True, exist_ok=True)
    lease.write_text(identity(os.getpid()) or "")
    return lease


def acquire_until_down() -> None:
    """Acquire the lease of `just up`."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    (_FOLDER / _LASTING).write_text(f"since {time.strftime('%H:%M')}")


def release_until_down() -> None:
    """Release the lease of `just up`, if there is one."""
    (_FOLDER / _LASTING).unlink(missing_ok=True)


def active_holders() -> list[str]:
    """Return the active holders, as "just dev (process 4711)"; remove leases of dead processes."""
    found = []
    with suppress(FileNotFoundError):
        for lease in sorted(_FOLDER.iterdir()):
            if lease.name == _LASTING:
                found.append("just up")
            elif pid := recorded(lease):
                found.append(f"just {lease.name.rpartition('-')[0]} (process {pid})")
            else:
                lease.unlink(missing_ok=True)
    return found
