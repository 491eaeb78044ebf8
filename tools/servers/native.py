"""The three servers as processes of this clone, started and stopped together."""

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from tools.secrets import Secrets
from tools.servers import packages
from tools.servers.addresses import Addresses, Prepare, without_password
from tools.servers.errors import ServersUnavailableError
from tools.servers.mongodb import MongoDB
from tools.servers.postgres import Postgres
from tools.servers.processes import Daemon, stop_all
from tools.servers.rabbitmq import RabbitMQ, running_nodes
from tools.servers.report import Row

_START_SECONDS = 120.0
_STOP_SECONDS = 2.0  # all data is on disk before; RabbitMQ 3.10 then waits 5 s
_POLL_SECONDS = 0.05
_STARTS = 3
"""Attempts to start a server that ends while it starts; see also `RabbitMQ.wait_ready`."""


class _Server(Protocol):
    """One server: its processes; clients connect to the first one."""

    @property
    def name(self) -> str: ...

    @property
    def daemons(self) -> tuple[Daemon, ...]: ...

    @property
    def urls(self) -> list[str]: ...

    def missing_packages(self) -> list[str]: ...

    def launch(self) -> None: ...

    def ready(self) -> bool: ...


class Native:
    """Servers from packages, with their data, logs and ports under .dev."""

    title = "processes of this clone"

    def __init__(self, secrets: Secrets, *, rabbitmq_nodes: int = 0) -> None:
        """Without a number of nodes, RabbitMQ has as many as run, or one."""
        nodes = rabbitmq_nodes or running_nodes() or 1
        self._rabbitmq = RabbitMQ(secrets.rabbitmq_password, nodes=nodes)
        self._postgres = Postgres(secrets.postgres_password)
        self._mongodb = MongoDB(secrets.mongo_password, secrets.mongo_key)
        self._servers: tuple[_Server, ...] = (self._rabbitmq, self._mongodb, self._postgres)

    def running(self) -> bool:
        """Return whether a server runs."""
        return any(daemon.pid() for daemon in self._daemons())

    def start(self, prepare: Prepare) -> Addresses:
        """Start stopped servers. Return when all are ready and `prepare` has finished."""
        packages.provide([name for server in self._servers for name in server.missing_packages()])
        self._mongodb.install()
        for server in self._servers:
            server.launch()
        addresses = Addresses(
            amqp_url=self._rabbitmq.amqp_url,
            amqp_management_url=self._rabbitmq.management_url,
            postgres_url=self._postgres.url,
            mongo_url=self._mongodb.url,
        )
        self._wait([self._postgres, self._mongodb])
        prepare(addresses)
        self._wait([self._rabbitmq])
        return addresses

    def stop(self) -> None:
        """Stop all servers within seconds; their data stays."""
        stop_all(self._daemons(), grace=_STOP_SECONDS)

    def status(self) -> list[Row]:
        """Return one row per server."""
        return [self._row(server) for server in self._servers]

    def log_command(self, names: Iterable[str], *, follow: bool) -> list[str]:
        """Return the command that prints the servers' logs."""
        wanted = set(names) or {server.name for server in self._servers}
        logs = [str(s.daemons[0].log) for s in self._servers if s.name in wanted]
        return ["tail", "-n", "40", *(["-F"] if follow else []), *logs]

    def _row(self, server: _Server) -> Row:
        pid = server.daemons[0].pid()
        state = "stopped" if pid is None else "ready" if server.ready() else "starting"
        with suppress(KeyError):
            urls = " ".join(map(without_password, server.urls)) if pid else ""
            return Row(server.name, "process", urls, state, pid)
        return Row(server.name, "process", "", state, pid)

    def _daemons(self) -> list[Daemon]:
        return [daemon for server in self._servers for daemon in server.daemons]

    def _wait(self, waiting: list[_Server]) -> None:
        """Wait until all are ready. Start a failed one again: its port may be taken."""
        end = time.monotonic() + _START_SECONDS
        again = waiting * (_STARTS - 1)
        while waiting := [server for server in waiting if not server.ready()]:
            for server in waiting:
                if all(daemon.pid() for daemon in server.daemons):
                    continue
                if server not in again:
                    raise ServersUnavailableError(_failure(server, "ended while it was starting"))
                again.remove(server)
                server.launch()
            if time.monotonic() > end:
                raise ServersUnavailableError(
                    _failure(waiting[0], f"was not ready in {_START_SECONDS:.0f} s")
                )
            time.sleep(_POLL_SECONDS)


def _failure(server: _Server, what: str) -> str:
    daemon = server.daemons[0]
    return f"{server.name} {what}. The end of {daemon.log}:\n{daemon.tail()}"
