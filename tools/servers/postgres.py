"""PostgreSQL as a process of this clone, from the system or from an unpacked Debian package."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tools.paths import DEV
from tools.servers import packages, ports
from tools.servers.errors import ServersUnavailableError
from tools.servers.processes import Daemon, wait_until

_FOLDER = DEV / "postgres"
_PORTS = _FOLDER / "ports.json"
_USER = "postbus"
_READY_LINE = 7  # line of postmaster.pid with the status, as pg_ctl reads it


def _locate() -> Path | None:
    """Return the folder of `postgres` and `initdb`: from PATH, or the newest of Debian's."""
    if (found := shutil.which("postgres")) and shutil.which("initdb"):
        return Path(found).resolve().parent
    for root in (Path("/"), packages.UNPACKED):
        folders = root.glob("usr/lib/postgresql/*/bin")
        with_server = [folder for folder in folders if (folder / "postgres").exists()]
        if with_server:
            return max(with_server, key=lambda folder: float(folder.parent.name))
    return None


def _as_ordinary_user() -> list[str]:
    """Return a command prefix that switches from root to another user: PostgreSQL refuses root.

    CAP_DAC_OVERRIDE lets that user traverse folders of root, such as root's home.
    """
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam("nobody")
    with suppress(KeyError):
        user = pwd.getpwnam("postgres")
    only = "-all,+dac_override"
    return [
        *("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"),
        *(f"--inh-caps={only}", f"--ambient-caps={only}", f"--bounding-set={only}", "--"),
    ]


class Postgres:
    """One PostgreSQL server with one superuser; it has no socket file and no system user."""

    name = "postgres"

    def __init__(self, password: str) -> None:
        self._password = password
        # SIGINT is PostgreSQL's fast shutdown: it does not wait for clients to disconnect.
        self._server = Daemon(name="postgres", folder=_FOLDER, stop_signal=signal.SIGINT)
        self.daemons = (self._server,)

    @property
    def url(self) -> str:
        port = ports.remembered(_PORTS)["postgres"]
        return f"postgresql://{_USER}:{self._password}@{ports.HOST}:{port}/postgres"

    @property
    def urls(self) -> list[str]:
        return [self.url]

    def missing_packages(self) -> list[str]:
        """Return the Debian packages to fetch first."""
        return [] if _locate() else ["postgresql"]

    def launch(self) -> None:
        """Start the server if it does not run; initialise its data folder the first time."""
        if self._server.pid():
            return
        binaries = _locate()
        if binaries is None:
            raise ServersUnavailableError("PostgreSQL was fetched but is not where it should be.")
        data = _data(binaries)
        if not data.exists():
            self._initialise(binaries, data)
        self._forget_last_run(data)
        port = ports.choose(_PORTS, ["postgres"])["postgres"]
        settings = {
            "port": str(port),
            "listen_addresses": ports.HOST,
            "unix_socket_directories": "",
            "max_connections": "200",
            "timezone": "GMT",  # the name of UTC that needs no time zone files
            "log_timezone": "GMT",
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        command = [*_as_ordinary_user(), str(binaries / "postgres"), "-D", str(data), *options]
        self._server.spawn(command, _environment())

    def ready(self) -> bool:
        """Return whether the server accepts connections, by the status in its pid file."""
        binaries = _locate()
        pid = self._server.pid()
        with suppress(OSError, IndexError):
            if binaries and pid:
                lines = (_data(binaries) / "postmaster.pid").read_text().splitlines()
                return lines[0] == str(pid) and lines[_READY_LINE].strip() == "ready"
        return False

    def _initialise(self, binaries: Path, data: Path) -> None:
        """Create the data folder; the final rename keeps interrupted attempts invisible."""
        draft = data.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        _FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=_FOLDER) as secret:
            secret.write(self._password)
            secret.flush()
            settings = ["--no-locale", "--encoding=UTF8", "--auth=scram-sha-256", "--no-sync"]
            login = [f"--username={_USER}", f"--pwfile={secret.name}"]
            completed = subprocess.run(
                [*_as_ordinary_user(), str(binaries / "initdb"), *settings, *login, str(draft)],
                env=_environment(),
                cwd=_FOLDER,
                capture_output=True,
                text=True,
                check=False,
            )
        if completed.returncode:
            raise ServersUnavailableError(
                f"PostgreSQL's initdb failed:\n{completed.stderr.strip()}"
            )
        draft.rename(data)

    def _forget_last_run(self, data: Path) -> None:
        """After a kill, wait for orphaned children and remove the stale pid file.

        PostgreSQL refuses to start if another process has the pid in the file.
        """
        last = self._server.last_pid()
        if last is None:
            return
        wait_until(lambda: not _group_exists(last), seconds=5)
        lock = data / "postmaster.pid"
        with suppress(OSError, IndexError):
            if lock.read_text().splitlines()[0] == str(last):
                lock.unlink()


def _data(binaries: Path) -> Path:
    """Return the data folder of this major version; other versions cannot read it."""
    return _FOLDER / f"data-{binaries.parent.name}"


def _group_exists(leader: int) -> bool:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, 0)
        return True
    return False


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "LD_LIBRARY_PATH": packages.library_path()}
