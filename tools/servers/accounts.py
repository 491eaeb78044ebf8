"""The accounts of the services at the servers of a command: made, or found if it may not."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import unquote, urlsplit

import aiormq
import asyncpg
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from tools.accounts.errors import MissingRightsError
from tools.accounts.rights import OPERATOR
from tools.accounts.set_up import set_up_broker_accounts, set_up_database_accounts
from tools.broker_queues import open_connection
from tools.paths import SERVICES
from tools.secrets import Secrets
from tools.servers.addresses import Addresses, in_database, owner_url, service_url
from tools.servers.errors import ServersUnavailableError
from tools.services import databases

__all__ = ["prepare_broker", "prepare_databases"]

_LOG_IN_SECONDS = 5


def vhost_of(amqp_url: str) -> str:
    """Return the virtual host of an AMQP URL."""
    return unquote(urlsplit(amqp_url).path[1:]) or "/"


def prepare_broker(addresses: Addresses, secrets: Secrets, *, ours: bool) -> None:
    """Make the broker accounts. Accounts of a server that is not `ours` keep their passwords.

    Raises ServersUnavailableError if they are missing and the given account may not make them.
    """
    vhost, url = vhost_of(addresses.amqp_url), addresses.amqp_url
    try:
        set_up_broker_accounts(addresses.amqp_management_url, vhost, secrets.accounts, replace=ours)
    except MissingRightsError as error:
        names = (*SERVICES, OPERATOR)
        urls = [service_url(url, "rabbitmq", name, secrets) for name in names]
        asyncio.run(_require(error, dict.fromkeys(urls, _open_broker)))


def prepare_databases(addresses: Addresses, secrets: Secrets, *, ours: bool) -> None:
    """Make the databases and their accounts, as `prepare_broker` does for the broker."""
    try:
        asyncio.run(
            set_up_database_accounts(
                addresses.postgres_url, addresses.mongo_url, secrets.accounts, replace=ours
            )
        )
    except MissingRightsError as error:
        asyncio.run(_require(error, _database_logins(addresses, secrets)))


LogIn = Callable[[str], Awaitable[None]]


def _database_logins(addresses: Addresses, secrets: Secrets) -> dict[str, LogIn]:
    logins: dict[str, LogIn] = {}
    for service in SERVICES:
        for server in databases(service):
            if server == "postgres":
                url = in_database(addresses.postgres_url, service)
                logins[service_url(url, server, service, secrets)] = _open_postgres
                logins[owner_url(url, service, secrets)] = _open_postgres
            else:
                url = in_database(addresses.mongo_url, service)
                logins[service_url(url, server, service, secrets)] = _open_mongodb
    return logins


async def _require(error: MissingRightsError, logins: dict[str, LogIn]) -> None:
    """Return if every account can log in; raise the way to make the missing ones otherwise."""
    missing = []
    for url, log_in in logins.items():
        try:
            async with asyncio.timeout(_LOG_IN_SECONDS):
                await log_in(url)
        except (OSError, aiormq.AMQPError, asyncpg.PostgresError, PyMongoError) as refusal:
            missing.append(f"{urlsplit(url).username} ({type(refusal).__name__})")
    if missing:
        raise ServersUnavailableError(
            f"Accounts of the services are missing, and {error}. Missing: {', '.join(missing)}.\n"
            "Give an administrator's address, or let an administrator run these commands with the\n"
            "passwords of .dev/secrets.env, where they can be changed too:\n  "
            + "\n  ".join(error.commands)
        ) from error


async def _open_broker(url: str) -> None:
    await (await open_connection(url)).close()


async def _open_postgres(url: str) -> None:
    await (await asyncpg.connect(url)).close()


async def _open_mongodb(url: str) -> None:
    async with AsyncMongoClient[dict[str, object]](
        url, serverSelectionTimeoutMS=_LOG_IN_SECONDS * 1000
    ) as client:
        await client.get_default_database().command("ping")
