"""What the worker `users` is configured with."""

from pydantic import SecretStr

from shared.settings import ServiceSettings

__all__ = ["UsersSettings"]


class UsersSettings(ServiceSettings):
    """See ServiceSettings."""

    postgres_url: SecretStr
    """Database: postgresql://user:password@host:port/name."""
    page_token_key: SecretStr
    """Signs page tokens: any long random text, the same in all processes of the service."""
    signing_key: SecretStr
    """Private Ed25519 key that signs access tokens: a JSON Web Key (RFC 8037) with `kid`."""
