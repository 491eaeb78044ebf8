"""`python -m users`: run the worker. `python -m users migrate [REVISION]`: migrate the database to
the newest revision, or back to an older one. `python -m users repair`: correct derived data.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from typing import Final

from shared.bus import MessageBus
from shared.data.pages import Pages
from shared.data.postgres_readiness import postgres_probe
from shared.data.postgres_sessions import Postgres, open_postgres
from shared.runtime.logs import configure_logs
from shared.runtime.settings import load
from shared.runtime.worker import Application, run_worker
from shared.security_log import SecurityLog
from users.account_handlers import AccountHandlers
from users.account_repository import AccountRepository
from users.device_tokens import DeviceTokens
from users.export_handlers import ExportHandlers
from users.follow_handlers import FollowHandlers
from users.follow_repository import FollowRepository
from users.log_in_handlers import LogInHandlers
from users.password_check import PasswordCheck
from users.passwords import Passwords
from users.periodic_purge import periodic_purge
from users.profile_handlers import ProfileHandlers
from users.profiles import Profiles
from users.refresh_handlers import RefreshHandlers
from users.repair import repair
from users.session_handlers import SessionHandlers
from users.session_repository import SessionRepository
from users.settings import UsersSettings
from users.signing_key_handlers import SigningKeyHandlers
from users.throttle import LoginThrottle
from users.token_signer import TokenSigner

_MIGRATIONS: Final = "users:migrations"
"""The package of the Alembic scripts."""


def main() -> None:
    """Run the command of the command line."""
    settings = load(UsersSettings)
    configure_logs("users", settings.log_format)
    match sys.argv[1:]:
        case []:
            run_worker("users", settings, lambda bus: application(settings, bus))
        case ["migrate", *back_to] if len(back_to) <= 1:
            from shared.data.alembic_migrations import migrate  # Alembic is slow to import

            migrate(settings.postgres_url, _MIGRATIONS, back_to=next(iter(back_to), None))
        case ["repair"]:
            asyncio.run(_repair(settings))
        case _:
            sys.exit("usage: python -m users [migrate [REVISION] | repair]")


@asynccontextmanager
async def application(settings: UsersSettings, bus: MessageBus) -> AsyncIterator[Application]:
    async with _open_postgres(settings) as postgres:
        with closing(Passwords()) as passwords:
            throttle = LoginThrottle(postgres, settings.login_failures_per_address)
            handlers = _handlers(settings, postgres, passwords, throttle, bus.security_log)
            async with periodic_purge(throttle.purge, SessionRepository(postgres).purge_responses):
                yield Application(
                    handlers=handlers,
                    probes={"postgresql": postgres_probe(postgres, _MIGRATIONS)},
                    store=postgres,
                )


def _open_postgres(settings: UsersSettings) -> AbstractAsyncContextManager[Postgres]:
    return open_postgres(settings.postgres_url, pooled=settings.postgres_pooled)


def _handlers(
    settings: UsersSettings,
    postgres: Postgres,
    passwords: Passwords,
    throttle: LoginThrottle,
    log: SecurityLog,
) -> list[object]:
    accounts, sessions = AccountRepository(postgres), SessionRepository(postgres)
    follows, pages = FollowRepository(postgres), Pages(settings.page_token_key)
    profiles, tokens = Profiles(accounts, follows), TokenSigner(settings.signing_key)
    devices = DeviceTokens(settings.page_token_key)
    check = PasswordCheck(passwords=passwords, throttle=throttle, devices=devices, log=log)
    return [
        AccountHandlers(accounts=accounts, sessions=sessions, passwords=check, log=log),
        LogInHandlers(
            accounts=accounts, sessions=sessions, passwords=check, tokens=tokens, log=log
        ),
        RefreshHandlers(sessions=sessions, tokens=tokens, store=postgres, log=log),
        SessionHandlers(accounts=accounts, sessions=sessions, pages=pages, log=log),
        ExportHandlers(accounts=accounts, sessions=sessions, follows=follows),
        SigningKeyHandlers(verification_keys=settings.verification_keys),
        ProfileHandlers(accounts=accounts, profiles=profiles, pages=pages),
        FollowHandlers(
            accounts=accounts, follows=follows, profiles=profiles, pages=pages, store=postgres
        ),
    ]


async def _repair(settings: UsersSettings) -> None:
    async with _open_postgres(settings) as postgres:
        async for line in repair(postgres):
            print(f"users: {line}")  # noqa: T201  # output of the command


if __name__ == "__main__":
    main()
