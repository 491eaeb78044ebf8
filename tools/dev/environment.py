"""The environment variables that configure the services on a developer's machine."""

from collections.abc import Mapping

from tools.dev.arguments import GATEWAY
from tools.paths import SERVICES
from tools.secrets import Secrets
from tools.servers import Addresses
from tools.servers.addresses import in_database, owner_url, service_url
from tools.services import databases


def process_environments(
    addresses: Addresses, secrets: Secrets, *, counts: Mapping[str, int], port: int
) -> dict[str, dict[str, str]]:
    """Return the environment of each process; `counts` has the number of processes by service.

    A service that is not in `counts` has one. The second process of `posts` is `posts-2`; gateways
    have consecutive ports from `port` on.
    """
    environments = service_environments(addresses, secrets, port=port)
    return {
        process_name(service, number): environment
        | ({"POSTBUS_PORT": str(port + number)} if service == GATEWAY else {})
        for service, environment in environments.items()
        for number in range(counts.get(service, 1))
    }


def process_name(service: str, number: int) -> str:
    """Return the name of a process: that of its service, with a number from the second one on."""
    return f"{service}-{number + 1}" if number else service


def service_of(process: str) -> str:
    """Return the service of a process by its name."""
    return process.partition("-")[0]


def service_environments(
    addresses: Addresses, secrets: Secrets, *, port: int
) -> dict[str, dict[str, str]]:
    """Return the POSTBUS_* variables of each service; a service gets only its own secrets."""
    shared = {
        "POSTBUS_VERIFICATION_KEYS": secrets.postbus_verification_keys,
        "POSTBUS_LOG_FORMAT": "console",
        "PYTHONUNBUFFERED": "1",
    }
    pages = {"POSTBUS_PAGE_TOKEN_KEY": secrets.postbus_page_token_key}
    own = {
        "gateway": {"POSTBUS_PORT": str(port)},
        "users": {"POSTBUS_SIGNING_KEY": secrets.postbus_signing_key, **pages},
        "posts": pages,
    }
    return {
        service: shared | own.get(service, {}) | account_urls(service, addresses, secrets)
        for service in SERVICES
    }


def account_urls(
    service: str, addresses: Addresses, secrets: Secrets, *, prefix: str = ""
) -> dict[str, str]:
    """Return the addresses of a service, with its accounts; its database is `prefix` + service."""
    urls = {"postgres": addresses.postgres_url, "mongo": addresses.mongo_url}
    return {
        "POSTBUS_AMQP_URL": service_url(addresses.amqp_url, "rabbitmq", service, secrets),
    } | {
        f"POSTBUS_{server.upper()}_URL": service_url(
            in_database(urls[server], prefix + service), server, service, secrets
        )
        for server in databases(service)
    }


def migration_urls(
    service: str, addresses: Addresses, secrets: Secrets, *, prefix: str = ""
) -> dict[str, str]:
    """Return the addresses that differ for the migrations of a service: the schema's owner."""
    if "postgres" not in databases(service):
        return {}
    url = in_database(addresses.postgres_url, prefix + service)
    return {"POSTBUS_POSTGRES_URL": owner_url(url, service, secrets)}
