"""Run the services under honcho: logs on the screen and in files, and a stop within seconds."""

import os
import shlex
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

from honcho.manager import Manager
from honcho.printer import Message, Printer

from tools.paths import LOGS, ROOT, SERVICES, python_of

_STOP_SECONDS = 2.0


class _Printer(Printer):  # type: ignore[misc]  # honcho has no types
    """Also appends the lines of each service to logs/NAME.log, even if the terminal is closed."""

    def write(self, message: Message) -> None:
        with suppress(OSError):
            super().write(message)
        if message.name in SERVICES:
            line = message.data if isinstance(message.data, bytes) else message.data.encode()
            with (LOGS / f"{message.name}.log").open("ab") as log:
                log.write(line)


class Services(Manager):  # type: ignore[misc]  # honcho has no types
    """Gateway and workers, each in its own environment, restarted when their sources change.

    `loop()` runs them until a signal; then they have two seconds to end.
    """

    def __init__(self, environments: Mapping[str, Mapping[str, str]]) -> None:
        super().__init__(_Printer(sys.stdout))
        LOGS.mkdir(exist_ok=True)
        for service, environment in environments.items():
            self.add_process(service, _command(service), env=os.environ | environment, cwd=ROOT)

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
