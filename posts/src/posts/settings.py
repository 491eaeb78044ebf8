"""What the worker `posts` is configured with."""

from pydantic import SecretStr

from shared.runtime.settings import ServiceSettings

__all__ = ["PostsSettings"]


class PostsSettings(ServiceSettings):
    """See ServiceSettings."""

    page_token_key: SecretStr
    """Signs page tokens: any long random text, the same in all processes of the service."""
    mongo_url: SecretStr
    """Database: mongodb://host:port/name, a replica set."""
