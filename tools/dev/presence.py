"""The state file of `just dev`: whether it runs in this clone, and the address of its gateway."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from tools.paths import DEV

_STATE = DEV / "dev.state"  # process id and gateway address; locked while dev runs


def gateway_of_dev() -> str | None:
    """Return the address of the gateway of this clone's `just dev`; None if it does not run."""
    with suppress(FileNotFoundError), _STATE.open("r") as state:
        try:
            fcntl.flock(state, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            _, *url = _STATE.read_text().split() or ["?"]
            return url[0] if url else None
    return None


@contextmanager
def only_one() -> Iterator[TextIO]:
    """Hold the lock of the state file; SystemExit if another `just dev` of this clone holds it."""
    DEV.mkdir(exist_ok=True)
    with _STATE.open("a+") as state:
        try:
            fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process, *url = _STATE.read_text().split() or ["?"]
            where = f" at {url[0]}" if url else ""
            raise SystemExit(
                f"just dev runs already in this clone{where} (process {process})."
                " End it with Ctrl-C in its terminal."
            ) from None
        write(state, "")
        yield state


def write(state: TextIO, url: str) -> None:
    """Write the address of the gateway into the state file."""
    state.seek(0)
    state.truncate()
    state.write(f"{os.getpid()} {url}")
    state.flush()
