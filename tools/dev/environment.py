"""The environment variables that configure the services on a developer's machine."""

import tomllib
from urllib.parse import urlsplit, urlunsplit

from tools.paths import ROOT, SERVICES
from tools.secrets import Secrets
from tools.servers import Addresses


def service_environments(
    addresses: Addresses, secrets: Secrets, *, port: int
) -> dict[str, dict[str, str]]:
    """Return the POSTBUS_* variables of each service; a service gets only its own secrets."""
    shared = {
        "POSTBUS_AMQP_URL": addresses.amqp_url,
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
    urls = {"postgres": addresses.postgres_url, "mongo": addresses.mongo_url}
    return {
        service: shared
        | own.get(service, {})
        | {f"POSTBUS_{server.upper()}_URL": _database(urls[server], service) for server in servers}
        for service, servers in ((service, databases(service)) for service in SERVICES)
    }


def databases(service: str) -> list[str]:
    """Return the database servers of a service, by the extras of `shared` in its pyproject.toml."""
    project = tomllib.loads((ROOT / service / "pyproject.toml").read_text())["project"]
    [shared] = [need for need in project["dependencies"] if need.startswith("postbus-shared")]
    return [server for server in ("mongo", "postgres") if server in shared]


def _database(url: str, name: str) -> str:
    """Return the address of the same server with another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
