"""Run the services under honcho: logs on the screen and in files, and a stop within seconds."""

import os
import shlex
import sys
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import datetime

from honcho.manager import Manager
from honcho.printer import Message, Printer

from tools.dev.environment import service_of
from tools.paths import LOGS, ROOT, python_of

_STOP_SECONDS = 2.0


class _Printer(Printer):  # type: ignore[misc]  # honcho has no types
    """Also appends the lines of each process to logs/NAME.log, even if the terminal is closed."""

    def __init__(self, processes: Collection[str]) -> None:
        super().__init__(sys.stdout)
        self._processes = processes

    def write(self, message: Message) -> None:
        with suppress(OSError):
            super().write(message)
        if message.name in self._processes:
            line = message.data if isinstance(message.data, bytes) else message.data.encode()
            with (LOGS / f"{message.name}.log").open("ab") as log:
                log.write(line)


class Services(Manager):  # type: ignore[misc]  # honcho has no types
    """Gateways and workers, each in its own environment, restarted when their sources change.

    `environments` has those of the processes by name. `loop()` runs them until a signal; then they
    have two seconds to end.
    """

    def __init__(self, environments: Mapping[str, Mapping[str, str]]) -> None:
        super().__init__(_Printer(environments))
        LOGS.mkdir(exist_ok=True)
        for name, environment in environments.items():
            command = _command(service_of(name))
            self.add_process(name, command, env=os.environ | environment, cwd=ROOT)

    def terminate(self) -> None:
        """Stop all services within the time limit; honcho itself waits without a limit."""
        super().terminate()
        end = threading.Timer(_STOP_SECONDS, self.kill)
        end.daemon = True
        end.start()

    def say(self, text: str) -> None:
        """Print lines among the lines of the services. Thread-safe."""
        for line in text.splitlines():
            self.events.put(Message("line", line, datetime.now(), "dev", None))


def _command(service: str) -> str:
    """Return a shell command: the shell is replaced by the reloader, the parent of the service."""
    watched = [ROOT / service / "src", ROOT / "shared" / "src", ROOT / "gen"]
    run = [python_of(service), "-m", service]
    reload = [sys.executable, "-m", "tools.dev.reload", os.getpid(), *watched, "--", *run]
    return f"exec {shlex.join(map(str, reload))}"
