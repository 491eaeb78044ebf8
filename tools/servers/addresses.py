"""The addresses of the three servers, and their environment variables."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from tools.accounts.passwords import owner_of, password_name
from tools.paths import SECRETS
from tools.secrets import Secrets
from tools.servers.errors import ServersUnavailableError


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """URLs with the credentials of each server's administrator."""

    amqp_url: str
    amqp_management_url: str
    postgres_url: str
    mongo_url: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Addresses | None":
        """Return the addresses in POSTBUS_*; None if none is set, an error if some are."""
        names = {field.name: variable(field.name) for field in fields(cls)}
        given = {key: environment[name] for key, name in names.items() if environment.get(name)}
        if not given:
            return None
        if missing := [name for key, name in names.items() if key not in given]:
            raise ServersUnavailableError(
                f"Some servers' addresses are set in the environment but not {', '.join(missing)}."
                " Set all four, or none to have the servers started for you."
            )
        return cls(**given)

    def as_environment(self) -> dict[str, str]:
        """Return POSTBUS_* variables: the addresses, and the file with the services' passwords.

        A command in another clone then uses the accounts that exist at the servers.
        """
        urls = {variable(key): url for key, url in asdict(self).items()}
        return urls | {"POSTBUS_SECRETS_FILE": str(SECRETS)}


Prepare = Callable[[Addresses], None]
"""A step that runs once both databases are ready, such as their migration."""


def variable(field: str) -> str:
    """Return the name of the environment variable of an address."""
    return f"POSTBUS_{field.upper()}"


def without_password(url: str) -> str:
    """Return the URL without its password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def with_account(url: str, user: str, password: str) -> str:
    """Return the URL with another account. Works with several hosts."""
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(user)}:{quote(password)}@{hosts}"))


def in_database(url: str, database: str) -> str:
    """Return the URL with another database; MongoDB looks for the account in this database."""
    parts = urlsplit(url)
    query = [(name, value) for name, value in parse_qsl(parts.query) if name != "authSource"]
    return urlunsplit(parts._replace(path=f"/{quote(database)}", query=urlencode(query)))


def service_url(url: str, server: str, account: str, secrets: Secrets) -> str:
    """Return an administrator's URL with another account: of a service, an owner or `operator`."""
    return with_account(url, account, secrets.accounts[password_name(server, account)])


def owner_url(url: str, service: str, secrets: Secrets) -> str:
    """Return the URL by which the migrations of a service change its PostgreSQL database."""
    return service_url(url, "postgres", owner_of(service), secrets)
