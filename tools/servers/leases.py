"""Who uses the servers: the last one out stops them.

A lease is a file. That of a running command names its process, so one that was killed without
giving its lease back holds nothing; that of `just up` lasts until `just down`.
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
    """Held while servers are started or stopped and leases change, by one process at a time."""
    DEV.mkdir(exist_ok=True)
    with (DEV / "servers.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("servers: waiting for another command that starts or stops them", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def take(command: str) -> Path:
    """A lease of this process; `command` is what people know it by."""
    lease = _FOLDER / f"{command}-{os.getpid()}"
    _FOLDER.mkdir(parents=True, exist_ok=True)
    lease.write_text(identity(os.getpid()) or "")
    return lease


def take_lasting() -> None:
    """The lease of `just up`."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    (_FOLDER / _LASTING).write_text(f"since {time.strftime('%H:%M')}")


def give_back_lasting() -> None:
    """Ends the lease of `just up`, if there is one."""
    (_FOLDER / _LASTING).unlink(missing_ok=True)


def holders() -> list[str]:
    """Who holds a lease now, as "just dev (process 4711)"; those of dead processes are removed."""
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
