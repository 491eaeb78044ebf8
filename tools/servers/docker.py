"""The three servers in containers: compose.yaml, with ports and a project name of this clone."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tools.paths import DEV, ROOT
from tools.secrets import Secrets
from tools.servers import ports
from tools.servers.addresses import Addresses, Prepare, without_password
from tools.servers.errors import ServersUnavailableError
from tools.servers.report import Row

_PORTS = DEV / "docker" / "ports.json"
_NAMES = ("rabbitmq", "rabbitmq_management", "postgres", "mongo")
_SERVICES = ("rabbitmq", "postgres", "mongo")
_ANSWER_SECONDS = 5


def engine_answers() -> bool:
    """Return whether this user can use a Docker engine with Compose."""
    if not shutil.which("docker"):
        return False
    try:
        for question in (["info"], ["compose", "version"]):
            subprocess.run(
                ["docker", *question], capture_output=True, check=True, timeout=_ANSWER_SECONDS
            )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return False
    return True


class Docker:
    """The containers of this clone, isolated from other clones; their data is in volumes."""

    title = "Docker containers"

    def __init__(self, secrets: Secrets, secrets_file: Path) -> None:
        self._secrets = secrets
        self._secrets_file = secrets_file

    def running(self) -> bool:
        """Return whether a container runs."""
        return bool(self._ask("ps", "--quiet", *_SERVICES).strip())

    def start(self, prepare: Prepare) -> Addresses:
        """Start the containers. Return when all are healthy and `prepare` has finished."""
        if not self.running():
            ports.choose(_PORTS, _NAMES)
        self._ask("up", "--detach", "--wait", *_SERVICES)
        addresses = self._addresses()
        prepare(addresses)
        return addresses

    def stop(self) -> None:
        """Stop the containers; their data stays."""
        self._ask("stop", "--timeout", "3", *_SERVICES)

    def status(self) -> list[Row]:
        """Return one row per server."""
        lines = self._ask("ps", "--all", "--format", "json", *_SERVICES).splitlines()
        found = {entry["Service"]: entry for entry in map(json.loads, lines)}
        addresses = self._addresses()
        urls = (addresses.amqp_url, addresses.postgres_url, addresses.mongo_url)
        return [
            Row(service, "docker", without_password(url), _state(found.get(service)), None)
            for service, url in zip(_SERVICES, urls, strict=True)
        ]

    def log_command(self, names: Iterable[str], *, follow: bool) -> list[str]:
        """Return the command that prints the servers' logs."""
        options = ["--tail", "40", *(["--follow"] if follow else [])]
        return [*self._compose("logs"), *options, *names]

    def _addresses(self) -> Addresses:
        port = ports.remembered(_PORTS) or dict.fromkeys(_NAMES, 0)
        rabbitmq = f"postbus:{self._secrets.rabbitmq_password}@{ports.HOST}"
        postgres = f"postbus:{self._secrets.postgres_password}@{ports.HOST}"
        mongo = f"postbus:{self._secrets.mongo_password}@{ports.HOST}"
        return Addresses(
            amqp_url=f"amqp://{rabbitmq}:{port['rabbitmq']}/",
            amqp_management_url=f"http://{rabbitmq}:{port['rabbitmq_management']}",
            postgres_url=f"postgresql://{postgres}:{port['postgres']}/postgres",
            mongo_url=f"mongodb://{mongo}:{port['mongo']}/?directConnection=true&authSource=admin",
        )

    def _compose(self, command: str) -> list[str]:
        project = f"postbus-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"
        where = ["--project-directory", str(ROOT), "--env-file", str(self._secrets_file)]
        return ["docker", "compose", "--project-name", project, *where, command]

    def _ask(self, command: str, *arguments: str) -> str:
        chosen = ports.remembered(_PORTS)
        completed = subprocess.run(
            [*self._compose(command), *arguments],
            env=os.environ | {f"{name.upper()}_PORT": str(chosen[name]) for name in chosen},
            capture_output=True,
            text=True,
            check=False,
        )
        if completed.returncode:
            raise ServersUnavailableError(
                f"docker compose {command} failed:\n{completed.stderr.strip()}"
            )
        return completed.stdout


def _state(entry: dict[str, str] | None) -> str:
    if entry is None:
        return "stopped"
    return "ready" if entry.get("Health") == "healthy" else entry["State"]
