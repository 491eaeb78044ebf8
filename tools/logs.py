"""`just logs`: the logs of servers and services."""

import os

from tools.paths import LOGS, SERVICES
from tools.servers.lifecycle import server_log_command

_SERVERS = ("rabbitmq", "mongodb", "mongo", "postgres")


def show(names: list[str], *, follow: bool) -> None:
    """Replace this process by the command that prints the logs of `names`, or of all services.

    Servers and services are not mixed: without names, the services are shown if there are any.
    """
    processes = sorted({*SERVICES, *(file.stem for file in LOGS.glob("*-*.log"))})
    if unknown := [name for name in names if name not in (*processes, *_SERVERS)]:
        raise SystemExit(
            f"There is no log of {', '.join(unknown)}. Known are:"
            f" {', '.join(processes)} (services), rabbitmq, mongodb, postgres (servers)."
        )
    services = [str(LOGS / f"{name}.log") for name in processes if name in names or not names]
    existing = [file for file in services if os.path.exists(file)]
    servers = [name for name in names if name in _SERVERS]
    if existing and not servers:
        command = ["tail", "-n", "40", *(["-F"] if follow else []), "--", *existing]
    else:
        command = server_log_command(servers, follow=follow)
    os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
