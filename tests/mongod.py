"""A mongod of a test: with users, with test commands, or without a replica set."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from tools.paths import ROOT

__all__ = ["Mongod", "run_mongod"]

_START_SECONDS: Final = 30.0
_PARAMETERS: Final = (
    "diagnosticDataCollectionEnabled=false",
    "enableTestCommands=1",
    "transactionLifetimeLimitSeconds=5",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mongod:
    """A running server; the user has the role root if the server has users."""

    port: int
    user: str = ""
    password: str = ""

    def url(self, database: str = "test", options: str = "directConnection=true") -> str:
        """Return the address of a database."""
        login = f"{self.user}:{self.password}@" if self.user else ""
        source = "&authSource=admin" if self.user else ""
        return f"mongodb://{login}127.0.0.1:{self.port}/{database}?{options}{source}"


@contextmanager
def run_mongod(
    folder: Path, *, users: bool = False, replica_set: bool = True, tls: Path | None = None
) -> Iterator[Mongod]:
    """Run a server with its data in `folder`. `tls` is a file with certificate and key."""
    packages = _packages()
    binary = shutil.which("mongod") or packages / "mongodb" / "fiftyone" / "db" / "bin" / "mongod"
    data = folder / "data"
    data.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1"]
    options += ["--nounixsocket", "--quiet", "--oplogSize", "16", "--wiredTigerCacheSizeGB", "0.25"]
    options += [word for each in _PARAMETERS for word in ("--setParameter", each)]
    if replica_set:
        options += ["--replSet", "test"]
    if users:
        options += ["--keyFile", str(_key_file(folder))]
    if tls:
        options += ["--tlsMode", "allowTLS", "--tlsCertificateKeyFile", str(tls)]
        options += ["--tlsCAFile", str(tls), "--tlsAllowConnectionsWithoutCertificates"]
    libraries = [packages / "mongodb" / "psycopg2_binary.libs"]
    libraries += [*packages.glob("debian/**/usr/lib/*-linux-*")]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    environment["LD_LIBRARY_PATH"] = ":".join(map(str, libraries))
    with (folder / "mongod.log").open("wb") as log:
        process = subprocess.Popen([binary, *options], env=environment, stdout=log, stderr=log)
    try:
        server = Mongod(port=port)
        _until_ready(server, replica_set=replica_set)
        yield _with_user(server) if users else server
    finally:
        process.kill()
        process.wait()


def _packages() -> Path:
    """Return the folder of the servers' packages; `just mutate` tests a copy below the original."""
    folders = (ROOT / ".dev" / "packages", ROOT.parents[1] / ".dev" / "packages")
    return next((folder for folder in folders if folder.exists()), folders[0])


def _key_file(folder: Path) -> Path:
    file = folder / "key"
    file.write_text(secrets.token_hex(32))
    os.chmod(file, 0o600)
    return file


def _until_ready(server: Mongod, *, replica_set: bool) -> None:
    end = time.monotonic() + _START_SECONDS
    member = {"_id": 0, "host": f"127.0.0.1:{server.port}"}
    with MongoClient[dict[str, Any]](server.url(), serverSelectionTimeoutMS=500) as client:
        while True:
            try:
                state = client.admin.command("hello")
                if state["isWritablePrimary"]:
                    return
                if replica_set and state.get("isreplicaset"):
                    config = {"_id": "test", "members": [member]}
                    client.admin.command("replSetInitiate", config)
            except OperationFailure:
                raise
            except PyMongoError:
                assert time.monotonic() < end, "mongod did not start"
            time.sleep(0.02)


def _with_user(server: Mongod) -> Mongod:
    """Create the first user, which the server allows without a log-in from this machine."""
    user, password = "operator", secrets.token_hex(8)
    with MongoClient[dict[str, Any]](server.url()) as client:
        client.admin.command("createUser", user, pwd=password, roles=["root"])
    return Mongod(port=server.port, user=user, password=password)
