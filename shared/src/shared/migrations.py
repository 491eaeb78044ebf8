"""Alembic migrations of a service's PostgreSQL database."""

from alembic import command
from alembic.config import Config
from pydantic import SecretStr

from shared.postgres import async_url

__all__ = ["migrate"]


def migrate(url: SecretStr, scripts: str) -> None:
    """Bring the database up to date with the Alembic scripts in the package `scripts`."""
    config = Config()
    config.set_main_option("script_location", scripts)
    config.attributes["url"] = async_url(url)
    command.upgrade(config, "head")
