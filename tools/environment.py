"""The environment variables by which the services are configured on a developer's machine."""

from urllib.parse import urlsplit, urlunsplit

from tools.infrastructure import Addresses
from tools.secrets import Secrets


def service_environments(
    addresses: Addresses, secrets: Secrets, *, port: int
) -> dict[str, dict[str, str]]:
    """POSTBUS_* for each service: only what that service may know."""
    shared = {
        "POSTBUS_AMQP_URL": addresses.amqp_url,
        "POSTBUS_VERIFICATION_KEYS": secrets.postbus_verification_keys,
        "POSTBUS_LOG_FORMAT": "console",
        "PYTHONUNBUFFERED": "1",
    }
    return {
        "users": shared
        | {
            "POSTBUS_POSTGRES_URL": database(addresses.postgres_url, "users"),
            "POSTBUS_SIGNING_KEY": secrets.postbus_signing_key,
        },
        "posts": shared | {"POSTBUS_MONGO_URL": database(addresses.mongo_url, "posts")},
        "gateway": shared | {"POSTBUS_PORT": str(port)},
    }


def database(url: str, name: str) -> str:
    """The same server's address with another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
