"""Alembic migrations of a service's PostgreSQL database."""

from alembic import command
from alembic.config import Config
from pydantic import SecretStr

from shared.postgres import async_url

__all__ = ["migrate"]


def migrate(url: SecretStr, scripts: str, revision: str = "head") -> None:
    """Bring the database to `revision` with the Alembic scripts in the package `scripts`."""
    config = Config()
    config.set_main_option("script_location", scripts)
    config.attributes["url"] = async_url(url)
    command.upgrade(config, revision)
