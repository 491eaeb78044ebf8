"""RabbitMQ as a process of this clone: Debian's package, run by its Erlang machine directly.

RabbitMQ's start scripts expect the paths of an installed package and unpatched `erl` scripts. They
only set the environment below, so the package is used unchanged.
"""

import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tools.paths import DEV
from tools.servers import packages, ports
from tools.servers.errors import ServersUnavailableError
from tools.servers.processes import Daemon

_FOLDER = DEV / "rabbitmq"
_PORTS = _FOLDER / "ports.json"
_USER = "postbus"
_PLUGINS = {"prelaunch", "management", "management_agent", "web_dispatch"}

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Installation:
    """The paths of RabbitMQ and Erlang, and the environment to run them."""

    home: Path
    erl: Path
    epmd: Path
    environment: dict[str, str]


def _on_debian(root: Path) -> _Installation | None:
    """Return the installation of Debian's packages under `root`."""
    homes = sorted(root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*"))
    erlang = root / "usr/lib/erlang"
    binaries = sorted(erlang.glob("erts-*/bin"))
    if not homes or not binaries:
        return None
    return _Installation(
        home=homes[-1],
        erl=binaries[-1] / "erlexec",
        epmd=binaries[-1] / "epmd",
        environment={
            "ROOTDIR": str(erlang),
            "BINDIR": str(binaries[-1]),
            "EMU": "beam",
            "PROGNAME": "erl",
            "LD_LIBRARY_PATH": packages.library_path(),
        },
    )


def _on_path() -> _Installation | None:
    """Return an installation on PATH in the layout of RabbitMQ's archive."""
    server, erl, epmd = (shutil.which(name) for name in ("rabbitmq-server", "erl", "epmd"))
    if not (server and erl and epmd):
        return None
    home = Path(server).resolve().parent.parent
    if not (home / "plugins").is_dir():
        return None
    return _Installation(home=home, erl=Path(erl), epmd=Path(epmd), environment={})


def _locate() -> _Installation | None:
    return _on_debian(Path("/")) or _on_path() or _on_debian(packages.UNPACKED)


class RabbitMQ:
    """The broker with its management plugin, isolated from other clones and the system's broker."""

    name = "rabbitmq"

    def __init__(self, password: str) -> None:
        self._password = password
        self._epmd = Daemon(name="epmd", folder=_FOLDER)
        self._server = Daemon(name="rabbitmq", folder=_FOLDER)
        self.daemons = (self._server, self._epmd)

    @property
    def amqp_url(self) -> str:
        port = ports.remembered(_PORTS)["amqp"]
        return f"amqp://{_USER}:{self._password}@{ports.HOST}:{port}/"

    @property
    def management_url(self) -> str:
        port = ports.remembered(_PORTS)["management"]
        return f"http://{_USER}:{self._password}@{ports.HOST}:{port}"

    @property
    def urls(self) -> list[str]:
        return [self.amqp_url, self.management_url]

    def missing_packages(self) -> list[str]:
        """Return the Debian packages to fetch first."""
        return [] if _locate() else ["rabbitmq-server"]

    def launch(self) -> None:
        """Start epmd (Erlang's name service, here for one node) and the node, unless they run.

        The node depends on its epmd and cannot change to another one's port.
        """
        if self._server.pid() and self._epmd.pid():
            return
        installation = _locate()
        if installation is None:
            raise ServersUnavailableError("RabbitMQ was fetched but is not where it should be.")
        for daemon in self.daemons:
            daemon.kill()
        chosen = ports.choose(_PORTS, ["amqp", "management", "distribution", "epmd"])
        environment = self._configure(installation, chosen)
        self._epmd.spawn([installation.epmd], environment)
        boot = ["-noinput", "-boot", "start_sasl", "-s", "rabbit", "boot", "+W", "w", "+B", "i"]
        no_busy_waiting = ["+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"]
        loopback = ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"]
        self._server.spawn([installation.erl, *boot, *no_busy_waiting, *loopback], environment)

    def ready(self) -> bool:
        """Return whether the broker accepts AMQP connections, by its health check."""
        chosen = ports.remembered(_PORTS)
        if not ports.accepts(chosen["management"]):
            return False
        api = f"http://{ports.HOST}:{chosen['management']}"
        realm = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        realm.add_password(None, api, _USER, self._password)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPBasicAuthHandler(realm)
        )
        check = f"{api}/api/health/checks/port-listener/{chosen['amqp']}"
        try:
            with opener.open(check, timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def _configure(self, installation: _Installation, chosen: dict[str, int]) -> dict[str, str]:
        """Write the configuration; return an environment without variables of the shell."""
        line = installation.home.name.rpartition("-")[2]  # each version has its own data
        data = _FOLDER / f"data-{line}"
        for folder in (data, _FOLDER / "conf.d", _FOLDER / "home"):
            folder.mkdir(parents=True, exist_ok=True)
        configuration = _FOLDER / "rabbitmq.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            _CONFIGURATION.format(**chosen, user=_USER, password=self._password)
        )
        (_FOLDER / "advanced.config").write_text("[].\n")
        (_FOLDER / "enabled_plugins").write_text("[rabbitmq_management].\n")
        plugins = str(_wanted_plugins(installation))
        return {
            **installation.environment,
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(_FOLDER / "home"),  # Erlang's cookie
            "ERL_EPMD_ADDRESS": ports.HOST,
            "ERL_EPMD_PORT": str(chosen["epmd"]),
            "ERL_LIBS": plugins,
            "RABBITMQ_HOME": str(installation.home),
            "RABBITMQ_PLUGINS_DIR": plugins,
            "RABBITMQ_NODENAME": "postbus@localhost",
            "RABBITMQ_DIST_PORT": str(chosen["distribution"]),
            "RABBITMQ_MNESIA_BASE": str(data),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_CONFIG_FILES": str(_FOLDER / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(_FOLDER / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(_FOLDER / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(data),
            "RABBITMQ_LOGS": "-",
        }


def _wanted_plugins(installation: _Installation) -> Path:
    """Return a folder with links to the needed plugins: a search of all takes a second."""
    folder = _FOLDER / "plugins"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for library in (installation.home / "plugins").iterdir():
        kind, _, plugin = library.name.partition("-")[0].partition("_")
        if kind != "rabbitmq" or plugin in _PLUGINS:
            (folder / library.name).symlink_to(library)
    return folder
