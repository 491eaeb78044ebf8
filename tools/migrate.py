"""`just migrate`: each service brings its own database up to date."""

import asyncio
import os
import subprocess
from contextlib import suppress

import asyncpg

from tools.environment import database, service_environments
from tools.infrastructure import Addresses, servers
from tools.paths import DEV, ROOT, python_of
from tools.secrets import Secrets

_WITH_DATABASE = ("users", "posts")


def migrate(addresses: Addresses) -> None:
    """Makes the users' database if it is missing, then runs both services' migrations."""
    secrets = Secrets.load_or_create(DEV / "secrets.env")
    environments = service_environments(addresses, secrets, port=0)
    asyncio.run(_create_database(addresses.postgres_url, "users"))
    running = {
        service: subprocess.Popen(
            [python_of(service), "-m", service, "migrate"],
            env=os.environ | environments[service],
            cwd=ROOT,
        )
        for service in _WITH_DATABASE
    }
    codes = {service: process.wait() for service, process in running.items()}
    if failed := [service for service, code in codes.items() if code]:
        raise SystemExit(f"The migration of {' and '.join(failed)} failed: see above.")


def migrate_standalone() -> None:
    """The recipe: on the servers that run, or on servers started for it."""
    with servers("migrate", prepare=migrate):
        pass
    print("migrate: the databases are up to date")


async def _create_database(server: str, name: str) -> None:
    connection = await asyncpg.connect(database(server, "postgres"))
    try:
        with suppress(asyncpg.DuplicateDatabaseError):
            await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
