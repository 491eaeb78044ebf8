"""The names of the accounts' passwords, in .dev/secrets.env and in the environment of compose."""

from tools.accounts.rights import OPERATOR
from tools.paths import SERVICES
from tools.services import databases

__all__ = ["owner_of", "password_name", "password_names"]


def owner_of(service: str) -> str:
    """Return the role that owns the database of a service and runs its migrations."""
    return f"{service}_owner"


def password_name(server: str, account: str) -> str:
    """Return the name of a password, such as `rabbitmq_users_password`."""
    return f"{server}_{account}_password"


def password_names() -> list[str]:
    """Return the names of the passwords of all accounts that services and the operator use."""
    names = [password_name("rabbitmq", account) for account in (*SERVICES, OPERATOR)]
    for service in SERVICES:
        for server in databases(service):
            names.append(password_name(server, service))
            if server == "postgres":
                names.append(password_name(server, owner_of(service)))
    return names
