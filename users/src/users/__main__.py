"""`python -m users`: run the worker. `python -m users migrate`: bring the database up to date."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from shared.postgres import open_postgres
from shared.settings import load
from shared.worker import Application, run_worker
from users.handlers import AuthHandlers, UserHandlers
from users.passwords import Passwords
from users.repository import UserRepository
from users.settings import UsersSettings
from users.tokens import TokenSigner


def main() -> None:
    """Do what the command line says."""
    settings = load(UsersSettings)
    match sys.argv[1:]:
        case []:
            run_worker("users", settings, lambda _: _application(settings))
        case ["migrate"]:
            from shared.migrations import migrate  # Alembic is slow to import

            migrate(settings.postgres_url, "users:migrations")
        case _:
            sys.exit("usage: python -m users [migrate]")


@asynccontextmanager
async def _application(settings: UsersSettings) -> AsyncIterator[Application]:
    async with open_postgres(settings.postgres_url) as postgres:
        with closing(Passwords()) as passwords:
            users = UserRepository(postgres)
            tokens = TokenSigner(settings.signing_key)
            yield Application(
                handlers=[AuthHandlers(users, passwords, tokens), UserHandlers(users)],
                probes={"postgresql": postgres.ping},
                store=postgres,
            )


if __name__ == "__main__":
    main()
