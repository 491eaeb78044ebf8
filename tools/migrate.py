"""`just migrate` and `just repair`: run the commands of the services on their databases."""

import os
import subprocess

from tools.dev.environment import migration_urls, service_environments
from tools.paths import ROOT, SECRETS, SERVICES, python_of
from tools.secrets import Secrets
from tools.servers import Addresses, servers
from tools.services import databases


def migrate(addresses: Addresses) -> None:
    """Run the migrations of all services that have a database, in parallel."""
    secrets = Secrets.load_or_create(SECRETS)
    environments = service_environments(addresses, secrets, port=0)
    running = {
        service: subprocess.Popen(
            [python_of(service), "-m", service, "migrate"],
            env=os.environ | environments[service] | migration_urls(service, addresses, secrets),
            cwd=ROOT,
        )
        for service in SERVICES
        if databases(service)
    }
    codes = {service: process.wait() for service, process in running.items()}
    if failed := [service for service, code in codes.items() if code]:
        raise SystemExit(f"The migration of {' and '.join(failed)} failed: see above.")


def repair() -> int:
    """Run `just repair`: services check and correct their derived data, on running servers."""
    with servers("repair", prepare=migrate) as addresses:
        secrets = Secrets.load_or_create(SECRETS)
        environments = service_environments(addresses, secrets, port=0)
        commands = [
            subprocess.run(
                [python_of(service), "-m", service, "repair"],
                env=os.environ | environments[service],
                cwd=ROOT,
                check=False,
            )
            for service in repaired_services()
        ]
    return max(command.returncode for command in commands)


def repaired_services() -> list[str]:
    """Return the services that have a module `repair`, and with it the command."""
    return [name for name in SERVICES if (ROOT / name / "src" / name / "repair.py").exists()]


def migrate_standalone() -> None:
    """Run `just migrate` on the running servers, or on servers started for it."""
    with servers("migrate", prepare=migrate):
        pass
    print("migrate: the databases are up to date")
