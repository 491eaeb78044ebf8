"""`python -m users`: run the worker. `python -m users migrate [REVISION]`: bring the database up to
date, or back to an older revision. `python -m users repair`: set right what is wrong, and say what.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from shared.data.pages import Pages
from shared.data.postgres_sessions import Postgres, open_postgres
from shared.runtime.settings import load
from shared.runtime.worker import Application, run_worker
from users.auth import AuthHandlers
from users.devices import DeviceTokens
from users.follow_handlers import FollowHandlers
from users.follows import FollowRepository
from users.handlers import UserHandlers
from users.passwords import Passwords
from users.profiles import Profiles
from users.repair import repair
from users.repository import UserRepository
from users.security_log import SecurityLog
from users.session_handlers import SessionHandlers
from users.sessions import SessionRepository
from users.settings import UsersSettings
from users.throttle import LoginThrottle
from users.tokens import TokenSigner
from users.upkeep import upkeep


def main() -> None:
    """Do what the command line says."""
    settings = load(UsersSettings)
    match sys.argv[1:]:
        case []:
            run_worker("users", settings, lambda _: application(settings))
        case ["migrate", *back_to] if len(back_to) <= 1:
            from shared.data.alembic_migrations import migrate  # Alembic is slow to import

            migrate(settings.postgres_url, "users:migrations", back_to=next(iter(back_to), None))
        case ["repair"]:
            asyncio.run(_repair(settings))
        case _:
            sys.exit("usage: python -m users [migrate [REVISION] | repair]")


@asynccontextmanager
async def application(settings: UsersSettings) -> AsyncIterator[Application]:
    async with open_postgres(settings.postgres_url) as postgres:
        with closing(Passwords()) as passwords:
            throttle = LoginThrottle(postgres, settings.login_failures_per_address)
            handlers = _handlers(settings, postgres, passwords, throttle)
            async with upkeep(throttle.purge, SessionRepository(postgres).purge_answers):
                yield Application(
                    handlers=handlers, probes={"postgresql": postgres.ping}, store=postgres
                )


def _handlers(
    settings: UsersSettings, postgres: Postgres, passwords: Passwords, throttle: LoginThrottle
) -> list[object]:
    users, sessions = UserRepository(postgres), SessionRepository(postgres)
    pages, log, tokens = (
        Pages(settings.page_token_key),
        SecurityLog(),
        TokenSigner(settings.signing_key),
    )
    follows = FollowRepository(postgres)
    profiles = Profiles(users, follows)
    return [
        AuthHandlers(
            users=users,
            sessions=sessions,
            passwords=passwords,
            throttle=throttle,
            devices=DeviceTokens(settings.page_token_key),
            tokens=tokens,
            verification_keys=settings.verification_keys,
            log=log,
        ),
        SessionHandlers(
            users=users, sessions=sessions, tokens=tokens, pages=pages, store=postgres, log=log
        ),
        UserHandlers(users=users, sessions=sessions, profiles=profiles, pages=pages, log=log),
        FollowHandlers(users=users, follows=follows, profiles=profiles, pages=pages),
    ]


async def _repair(settings: UsersSettings) -> None:
    async with open_postgres(settings.postgres_url) as postgres:
        async for finding in repair(postgres):
            print(f"users: {finding}")  # noqa: T201  # a command's answer


if __name__ == "__main__":
    main()
