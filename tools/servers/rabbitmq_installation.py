"""The programs of RabbitMQ and Erlang: Debian's packages, or an installation on PATH."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tools.servers import packages
from tools.servers.errors import ServersUnavailableError

_PLUGINS = {"prelaunch", "management", "management_agent", "web_dispatch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The paths of RabbitMQ and Erlang, and the environment to run them."""

    home: Path
    erl: Path
    epmd: Path
    environment: dict[str, str]

    @property
    def version(self) -> str:
        return self.home.name.rpartition("-")[2]

    def link_plugins(self, folder: Path) -> None:
        """Make `folder` with links to the needed plugins: a search of all takes a second."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for library in (self.home / "plugins").iterdir():
            kind, _, plugin = library.name.partition("-")[0].partition("_")
            if kind != "rabbitmq" or plugin in _PLUGINS:
                (folder / library.name).symlink_to(library)


def missing_packages() -> list[str]:
    """Return the Debian packages to fetch first."""
    return [] if _locate() else ["rabbitmq-server"]


def locate() -> Installation:
    """Return the installation; raises ServersUnavailableError."""
    if found := _locate():
        return found
    raise ServersUnavailableError("RabbitMQ was fetched but is not where it should be.")


def _locate() -> Installation | None:
    return _on_debian(Path("/")) or _on_path() or _on_debian(packages.UNPACKED)


def _on_debian(root: Path) -> Installation | None:
    """Return the installation of Debian's packages under `root`."""
    homes = sorted(root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*"))
    erlang = root / "usr/lib/erlang"
    binaries = sorted(erlang.glob("erts-*/bin"))
    if not homes or not binaries:
        return None
    return Installation(
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


def _on_path() -> Installation | None:
    """Return an installation on PATH in the layout of RabbitMQ's archive."""
    server, erl, epmd = (shutil.which(name) for name in ("rabbitmq-server", "erl", "epmd"))
    if not (server and erl and epmd):
        return None
    home = Path(server).resolve().parent.parent
    if not (home / "plugins").is_dir():
        return None
    return Installation(home=home, erl=Path(erl), epmd=Path(epmd), environment={})
