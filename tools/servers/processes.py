"""Background processes that outlive their command, identified by pid files."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.02
_OPEN_FILES = 64_000
"""Open files of a server, unless the system allows fewer. MongoDB ends if it cannot open a file; it
has one for each collection and index, and ordinary users begin with a limit of 1024."""


def identity(pid: int) -> str | None:
    """Return an identity that survives reuse of the pid; None if no process runs.

    It consists of pid, boot id and start time. A zombie does not run.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None if Path("/proc/self").exists() else _identity_by_ps(pid)
    state, *rest = stat.rpartition(")")[2].split()  # the process name may contain any character
    return None if state in "ZX" else f"{pid} {boot} {rest[18]}"


def _identity_by_ps(pid: int) -> str | None:
    """Return the identity on systems without /proc."""
    completed = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = completed.stdout.strip().partition(" ")
    return f"{pid} {started}" if started and not state.startswith("Z") else None


def recorded(file: Path) -> int | None:
    """Return the pid in the file if the same process still runs, else None."""
    with suppress(OSError, ValueError, IndexError):
        text = file.read_text()
        pid = int(text.split()[0])
        if identity(pid) == text:
            return pid
    return None


def wait_until(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Poll the condition. Return True once it holds, False at the timeout."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _raise_file_limit() -> None:
    """Raise the limit of this process; its children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A background process in its own session, with `NAME.pid` and `NAME.log`."""

    name: str
    folder: Path
    stop_signal: signal.Signals = signal.SIGTERM

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    def pid(self) -> int | None:
        """Return the pid, None if it does not run."""
        return recorded(self._pid_file)

    def last_pid(self) -> int | None:
        """Return the pid of the last start, whether it runs or not."""
        with suppress(OSError, ValueError, IndexError):
            return int(self._pid_file.read_text().split()[0])
        return None

    def spawn(self, command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
        """Start the process; the previous log is kept as NAME.log.1."""
        _raise_file_limit()
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            self.log.replace(self.folder / f"{self.name}.log.1")
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._pid_file.write_text(identity(process.pid) or f"{process.pid} ended")
        process.returncode = 0  # it outlives the object, which would warn of that

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process; SIGKILL goes to its whole process group."""
        if pid := self.pid():
            with suppress(ProcessLookupError):
                (os.killpg if number is signal.SIGKILL else os.kill)(pid, number)

    def kill(self) -> None:
        """Kill the process with its children; return when it has ended."""
        self.send(signal.SIGKILL)
        wait_until(lambda: self.pid() is None, seconds=5)

    def tail(self, lines: int = 15) -> str:
        """Return the end of the log, for an error message."""
        with suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""


def stop_all(daemons: Iterable[Daemon], *, grace: float) -> None:
    """Stop processes in parallel; kill the remaining ones after `grace` seconds."""
    running = [daemon for daemon in daemons if daemon.pid()]
    for daemon in running:
        daemon.send(daemon.stop_signal)
    if not wait_until(lambda: not any(daemon.pid() for daemon in running), seconds=grace):
        for daemon in running:
            daemon.send(signal.SIGKILL)
        wait_until(lambda: not any(daemon.pid() for daemon in running), seconds=1.0)
    for daemon in running:
        _reap(daemon.last_pid())


def _reap(pid: int | None) -> None:
    """Reap a child of this process, so that no zombie is left."""
    if pid:
        with suppress(ChildProcessError):  # not a child: another command started it
            os.waitpid(pid, os.WNOHANG)
