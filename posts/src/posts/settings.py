"""What the worker `posts` is configured with."""

from pydantic import SecretStr

from shared.settings import ServiceSettings

__all__ = ["PostsSettings"]


class PostsSettings(ServiceSettings):
    """See ServiceSettings."""

    mongo_url: SecretStr
    """Database: mongodb://host:port/name, a replica set."""
