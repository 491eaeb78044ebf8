"""What the worker `users` is configured with."""

from pydantic import Field, SecretStr

from shared.runtime.settings import ServiceSettings

__all__ = ["UsersSettings"]


class UsersSettings(ServiceSettings):
    """See ServiceSettings."""

    postgres_url: SecretStr
    """Database: postgresql://user:password@host:port/name."""
    page_token_key: SecretStr
    """Signs page tokens and, by a derived key, device tokens: any long random text, the same in all
    processes of the service."""
    login_failures_per_address: int = Field(default=50, ge=0)
    """Failed log-ins that one client address has at once, over all accounts, and one more every 12
    seconds; 0 for no limit."""
    signing_key: SecretStr
    """Private Ed25519 key that signs access tokens: a JSON Web Key (RFC 8037) with `kid`."""
