"""RabbitMQ as processes of this clone: one node, or a cluster of several."""

import secrets
from collections.abc import Iterable
from pathlib import Path

from tools.paths import DEV
from tools.servers import ports, rabbitmq_installation
from tools.servers.processes import Daemon, wait_until
from tools.servers.rabbitmq_node import USER, Common, Node

_FOLDER = DEV / "rabbitmq"
MAX_NODES = 9


def running_nodes() -> int:
    """Return the number of nodes of the broker that runs in this clone; 0 if none runs."""
    for count in range(1, MAX_NODES + 1):
        if any(daemon.pid() for daemon in RabbitMQ("", nodes=count).daemons):
            return count
    return 0


class RabbitMQ:
    """The broker with its management plugin, isolated from other clones and the system's broker.

    A cluster of `nodes` has a folder of its own beside that of the single node, because a node
    does not start without the cluster that its data belongs to. Clients of the management API use
    the first node.
    """

    name = "rabbitmq"

    def __init__(self, password: str, *, nodes: int = 1, folder: Path = _FOLDER) -> None:
        self._password = password
        self._folder = folder if nodes == 1 else folder.with_name(f"{folder.name}-{nodes}")
        self.nodes = [self._node(number) for number in range(1, nodes + 1)]
        self._epmd = Daemon(name="epmd", folder=self._folder)
        self.daemons = (*(node.daemon for node in self.nodes), self._epmd)

    def _node(self, number: int) -> Node:
        if number == 1:
            return Node(name="postbus@localhost", folder=self._folder, password=self._password)
        return Node(
            name=f"postbus-{number}@localhost",
            folder=self._folder / f"node-{number}",
            password=self._password,
        )

    @property
    def amqp_url(self) -> str:
        hosts = ",".join(f"{ports.HOST}:{node.ports['amqp']}" for node in self.nodes)
        return f"amqp://{USER}:{self._password}@{hosts}/"

    @property
    def management_url(self) -> str:
        port = self.nodes[0].ports["management"]
        return f"http://{USER}:{self._password}@{ports.HOST}:{port}"

    @property
    def urls(self) -> list[str]:
        return [self.amqp_url, self.management_url]

    def missing_packages(self) -> list[str]:
        """Return the Debian packages to fetch first."""
        return rabbitmq_installation.missing_packages()

    def launch(self) -> None:
        """Start epmd (Erlang's name service for these nodes) and the nodes that do not run.

        A node depends on its epmd and cannot change to another one's port.
        """
        if all(daemon.pid() for daemon in self.daemons):
            return
        if not self._epmd.pid():
            for daemon in self.daemons:
                daemon.kill()
        common = self._common()
        if not self._epmd.pid():
            environment = {"ERL_EPMD_PORT": str(common.epmd_port), "ERL_EPMD_ADDRESS": ports.HOST}
            self._epmd.spawn(
                [common.installation.epmd], common.installation.environment | environment
            )
        self.start(node for node in self.nodes if not node.daemon.pid())

    def start(self, nodes: Iterable[Node]) -> None:
        """Start nodes of a cluster whose epmd runs."""
        common = self._common()
        for node in nodes:
            node.launch(common)

    def wait_ready(self, seconds: float) -> bool:
        """Return True once `ready`, False at the timeout. Nodes that end start again.

        Nodes of RabbitMQ 3.10 that start at the same time can find each other's feature flags
        incompatible, because one has not read its own yet.
        """

        def ready() -> bool:
            self.launch()
            return self.ready()

        return wait_until(ready, seconds=seconds)

    def ready(self) -> bool:
        """Return whether all nodes accept AMQP connections and have joined the cluster."""
        names = {node.name for node in self.nodes}
        return all(node.ready() for node in self.nodes) and (
            len(names) == 1 or names == set(self.nodes[0].running_nodes())
        )

    def _common(self) -> Common:
        """Write the cookie and, if epmd does not run, choose its port and link the plugins."""
        installation = rabbitmq_installation.locate()
        home, port = self._folder / "home", self._folder / "epmd.json"
        home.mkdir(parents=True, exist_ok=True)
        cookie = home / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(20))
            cookie.chmod(0o400)
        if self._epmd.pid():
            epmd_port = ports.remembered(port)["epmd"]
        else:
            installation.link_plugins(self._folder / "plugins")
            epmd_port = ports.choose(port, ["epmd"])["epmd"]
        return Common(
            installation=installation,
            folder=self._folder,
            epmd_port=epmd_port,
            password=self._password,
            nodes=[node.name for node in self.nodes],
        )
