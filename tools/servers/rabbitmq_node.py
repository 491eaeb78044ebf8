"""A node of RabbitMQ: a process with ports, data and log of its own.

RabbitMQ's start scripts expect the paths of an installed package and unpatched `erl` scripts. They
only set the environment below, so the package is used unchanged.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.servers import ports
from tools.servers.processes import Daemon
from tools.servers.rabbitmq_installation import Installation

USER = "postbus"

_CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = {management}
default_user = {user}
default_pass = {password}
default_user_tags.administrator = true
log.console = true
log.file = false
disk_free_limit.absolute = 50MB
"""
_CLUSTER = """\
cluster_formation.peer_discovery_backend = classic_config
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The settings that all nodes of a cluster have in common."""

    installation: Installation
    folder: Path
    """With the Erlang cookie, by which the nodes accept each other, and the plugins."""
    epmd_port: int
    password: str
    nodes: Sequence[str]
    """The names of all nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node with its folder."""

    name: str
    folder: Path
    password: str

    @property
    def daemon(self) -> Daemon:
        return Daemon(name="rabbitmq", folder=self.folder)

    @property
    def ports(self) -> dict[str, int]:
        """The ports of the last start: `amqp`, `management` and `distribution`."""
        return ports.remembered(self._ports_file)

    @property
    def _ports_file(self) -> Path:
        return self.folder / "ports.json"

    def launch(self, common: Common) -> None:
        """Start the process."""
        chosen = ports.choose(self._ports_file, ["amqp", "management", "distribution"])
        environment = self._configure(common, chosen)
        boot = ["-noinput", "-boot", "start_sasl", "-s", "rabbit", "boot", "+W", "w", "+B", "i"]
        no_busy_waiting = ["+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"]
        loopback = ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"]
        self.daemon.spawn(
            [common.installation.erl, *boot, *no_busy_waiting, *loopback], environment
        )

    def ready(self) -> bool:
        """Return whether the node accepts AMQP connections, by its health check."""
        chosen = self.ports
        return self.get(f"health/checks/port-listener/{chosen.get('amqp')}") is not None

    def running_nodes(self) -> list[str]:
        """Return the names of the running nodes of its cluster, as this node sees them."""
        return [each["name"] for each in self.get("nodes") or [] if each.get("running")]

    def get(self, path: str) -> Any:
        """Return the response of the management API; None if there is none."""
        port = self.ports.get("management", 0)
        if not ports.accepts(port):
            return None
        api = f"http://{ports.HOST}:{port}"
        realm = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        realm.add_password(None, api, USER, self.password)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPBasicAuthHandler(realm)
        )
        try:
            with opener.open(f"{api}/api/{path}", timeout=2) as response:
                return json.load(response)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return None

    def _configure(self, common: Common, chosen: dict[str, int]) -> dict[str, str]:
        """Write the configuration; return an environment without variables of the shell."""
        data = self.folder / f"data-{common.installation.version}"  # each version has its own data
        for folder in (data, self.folder / "conf.d"):
            folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "rabbitmq.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            _CONFIGURATION.format(**chosen, user=USER, password=self.password)
            + _formation(common.nodes)
        )
        (self.folder / "advanced.config").write_text("[].\n")
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        plugins = str(common.folder / "plugins")
        return {
            **common.installation.environment,
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(common.folder / "home"),  # Erlang's cookie
            "ERL_EPMD_ADDRESS": ports.HOST,
            "ERL_EPMD_PORT": str(common.epmd_port),
            "ERL_CRASH_DUMP_BYTES": "0",
            "ERL_LIBS": plugins,
            "RABBITMQ_HOME": str(common.installation.home),
            "RABBITMQ_PLUGINS_DIR": plugins,
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(chosen["distribution"]),
            "RABBITMQ_MNESIA_BASE": str(data),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_CONFIG_FILES": str(self.folder / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(data),
            "RABBITMQ_LOGS": "-",
        }


def _formation(names: Sequence[str]) -> str:
    """Return the configuration by which new nodes form a cluster; empty for a single node."""
    if len(names) == 1:
        return ""
    return _CLUSTER + "".join(
        f"cluster_formation.classic_config.nodes.{number} = {name}\n"
        for number, name in enumerate(names, 1)
    )
