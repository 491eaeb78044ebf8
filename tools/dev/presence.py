"""Whether `just dev` runs in this clone, and where its gateway is."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from tools.paths import DEV

_STATE = DEV / "dev.state"  # the process and the gateway's address, locked while dev runs


def gateway_of_dev() -> str | None:
    """The address of the gateway of the `just dev` that runs in this clone, if one does."""
    with suppress(FileNotFoundError), _STATE.open("r") as state:
        try:
            fcntl.flock(state, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            _, *url = _STATE.read_text().split() or ["?"]
            return url[0] if url else None
    return None


@contextmanager
def only_one() -> Iterator[TextIO]:
    """The state file, locked; the program ends if another `just dev` of this clone has it."""
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
    """Tells others the address of the gateway."""
    state.seek(0)
    state.truncate()
    state.write(f"{os.getpid()} {url}")
    state.flush()
