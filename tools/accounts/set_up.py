"""Make all accounts of the services at the three servers; nothing changes if they exist."""

from collections.abc import Mapping

from tools.accounts.broker import set_up_broker
from tools.accounts.mongodb import set_up_mongodb
from tools.accounts.passwords import owner_of, password_name
from tools.accounts.postgres import set_up_postgres
from tools.accounts.rights import broker_rights
from tools.paths import SERVICES
from tools.services import call_graph, databases

__all__ = ["set_up_broker_accounts", "set_up_database_accounts"]


def set_up_broker_accounts(
    management_url: str, vhost: str, passwords: Mapping[str, str], *, replace: bool = True
) -> None:
    """Make the broker accounts, with their rights on a virtual host; see `set_up_broker`."""
    rights = broker_rights(call_graph())
    set_up_broker(
        management_url,
        vhost=vhost,
        rights=rights,
        passwords={name: passwords[password_name("rabbitmq", name)] for name in rights},
        replace=replace,
    )


async def set_up_database_accounts(
    postgres_url: str,
    mongo_url: str,
    passwords: Mapping[str, str],
    *,
    prefix: str = "",
    replace: bool = True,
) -> None:
    """Make the databases and accounts of all services; a database is `prefix` + service."""
    for service in SERVICES:
        for server in databases(service):
            password = passwords[password_name(server, service)]
            database = prefix + service
            if server == "postgres":
                owner_password = passwords[password_name(server, owner_of(service))]
                await set_up_postgres(
                    postgres_url,
                    service=service,
                    database=database,
                    password=password,
                    owner_password=owner_password,
                    replace=replace,
                )
            else:
                set_up_mongodb(
                    mongo_url,
                    service=service,
                    database=database,
                    password=password,
                    replace=replace,
                )
