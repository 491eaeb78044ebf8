"""Settings of the worker `users`."""

from pydantic import Field, SecretStr

from shared.data.postgres_addresses import PostgresUrl
from shared.runtime.settings import ServiceSettings

__all__ = ["UsersSettings"]


class UsersSettings(ServiceSettings):
    """See ServiceSettings."""

    postgres_url: PostgresUrl
    """URL of the database: postgresql://user:password@host:port/name, with the parameters of libpq
    that asyncpg supports, such as sslmode, sslrootcert, application_name and several hosts."""
    postgres_pooled: bool = False
    """Whether `postgres_url` leads to a pooler in transaction mode, such as pgbouncer. Each
    statement then takes two round trips instead of one, and a read has a transaction."""
    page_token_key: SecretStr
    """Key for page tokens and, derived from it, for device tokens: a long random text, the same in
    all processes of the service."""
    login_failures_per_address: int = Field(default=50, ge=0)
    """Failed log-ins that one client address may make in a burst, over all accounts; one more is
    allowed every 12 seconds. 0 means no limit."""
    signing_key: SecretStr
    """Private Ed25519 key that signs access tokens: a JSON Web Key (RFC 8037) with `kid`."""
