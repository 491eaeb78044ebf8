"""The servers of this clone as processes that can be killed and restarted.

`python -m tests.faults.chaos.servers NAME` starts a server that has been killed.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from tools.paths import ROOT, SECRETS
from tools.secrets import Secrets
from tools.servers.native import Native
from tools.servers.processes import Daemon, wait_until

__all__ = ["StartedServers", "started_servers"]

_NAMES: Final = {"rabbitmq": "rabbitmq", "postgresql": "postgres", "mongodb": "mongodb"}
"""Names of proxies and of the developer's servers."""
_END_SECONDS: Final = 20.0
_EVAL_SECONDS: Final = 30.0


def _native(name: str) -> tuple[Native, Any]:
    native = Native(Secrets.load_or_create(SECRETS))
    [server] = [each for each in native._servers if each.name == _NAMES[name]]
    return native, server


class StartedServers:
    """The servers that run as processes of this clone, by the name of their proxy."""

    def __init__(self, daemons: Mapping[str, Daemon]) -> None:
        self._daemons = daemons

    def __contains__(self, name: str) -> bool:
        """Return whether a server can be killed and restarted."""
        return name in self._daemons

    async def end(self, name: str, number: signal.Signals) -> None:
        """Send a signal that ends a server; return when it has ended."""
        daemon = self._daemons[name]
        daemon.send(number)
        ended = await asyncio.to_thread(
            wait_until, lambda: daemon.pid() is None, seconds=_END_SECONDS
        )
        assert ended, f"{name} runs in spite of {number.name}"

    async def start(self, name: str) -> None:
        """Start a server again; return when it is ready."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.faults.chaos.servers", name, cwd=ROOT
        )
        assert await process.wait() == 0, f"{name} did not start"

    async def evaluate(self, expression: str) -> str:
        """Call an Erlang function in the broker, such as `{rabbit_alarm, get_alarms, []}`.

        Return its result as text.
        """
        program, environment = _erlang(self._daemons["rabbitmq"])
        node = environment["RABBITMQ_NODENAME"]
        call = f"rpc:call('{node}', M, F, A)"
        text = f'{{M, F, A}} = {expression}, io:format("~0p", [{call}]), halt().'
        name = f"chaos{os.getpid()}@{node.partition('@')[2]}"
        loopback = ("-kernel", "inet_dist_use_interface", "{127,0,0,1}")
        process = await asyncio.create_subprocess_exec(
            *(program, "-noinput", "-hidden", "-sname", name, *loopback, "-eval", text),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(_EVAL_SECONDS):
            output, _ = await process.communicate()
        assert process.returncode == 0, output
        assert b"badrpc" not in output, output
        return output.decode()


def _erlang(broker: Daemon) -> tuple[str, dict[str, str]]:
    """Return the program that runs Erlang, and the environment of the broker."""
    process = Path(f"/proc/{broker.pid()}")
    entries = (process / "environ").read_text().split("\0")
    environment = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    return str((process / "exe").resolve().with_name("erlexec")), environment


def started_servers(urls: Mapping[str, str]) -> StartedServers:
    """Return those servers of the addresses, by proxy name, that `just` has started as processes.

    Containers and servers of others are not among them.
    """
    daemons = {}
    for name, url in urls.items():
        _, server = _native(name)
        daemon: Daemon = server.daemons[0]
        if daemon.pid() and httpx.URL(url).port in {httpx.URL(each).port for each in server.urls}:
            daemons[name] = daemon
    return StartedServers(daemons)


if __name__ == "__main__":
    _servers, _server = _native(sys.argv[1])
    _server.launch()
    _servers._wait([_server])
