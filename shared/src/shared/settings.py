"""Configuration that every process has; read once, in `__main__`, and passed on as values."""

from pathlib import Path
from typing import Literal

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["ServiceSettings"]

_SECRETS = Path("/run/secrets")


class ServiceSettings(BaseSettings):
    """Settings from the environment (`POSTBUS_AMQP_URL`) or from files in /run/secrets."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBUS_",
        frozen=True,
        secrets_dir=_SECRETS if _SECRETS.is_dir() else None,
    )

    amqp_url: SecretStr
    """RabbitMQ: amqp://user:password@host:port/vhost."""
    verification_keys: str
    """Public keys that access tokens are verified with: a JSON Web Key Set (RFC 7517)."""
    log_format: Literal["console", "json"] = "json"
    """Log lines for people or for machines."""
