"""The environment variables that configure the services on a developer's machine."""

from tools.paths import SERVICES
from tools.secrets import Secrets
from tools.servers import Addresses
from tools.servers.accounts import owner_url, service_url
from tools.servers.addresses import in_database
from tools.services import databases


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
