"""The settings of every process, read once in `__main__`."""

import sys
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.bus.amqp.broker_addresses import broker_addresses

__all__ = ["ServiceSettings", "load"]

_SECRETS = Path("/run/secrets")


class ServiceSettings(BaseSettings):
    """Settings from the environment (`POSTBUS_AMQP_URL`) or from files in /run/secrets."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBUS_",
        frozen=True,
        hide_input_in_errors=True,
    )

    amqp_url: SecretStr
    """RabbitMQ: amqp://user:password@host:port/vhost, with `host:port,host:port` for a cluster."""
    verification_keys: str
    """The public keys of access tokens: a JSON Web Key Set (RFC 7517)."""
    log_format: Literal["console", "json"] = "json"
    """Format of log lines: for people, or JSON."""

    @field_validator("amqp_url")
    @classmethod
    def _require_brokers(cls, url: SecretStr) -> SecretStr:
        broker_addresses(url.get_secret_value())
        return url


S = TypeVar("S", bound=ServiceSettings)


def load(settings: type[S]) -> S:
    """Return the settings of this process. If they are invalid, print why and exit."""
    try:
        return settings(_secrets_dir=_SECRETS if _SECRETS.is_dir() else None)
    except ValidationError as error:
        sys.exit(
            "\n".join(f"POSTBUS_{e['loc'][0]!s}".upper() + f": {e['msg']}" for e in error.errors())
        )
