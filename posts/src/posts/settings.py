"""Settings of the worker `posts`."""

from pydantic import SecretStr

from shared.data.mongo_addresses import MongoUrl
from shared.runtime.settings import ServiceSettings

__all__ = ["PostsSettings"]


class PostsSettings(ServiceSettings):
    """Settings of `posts`, in addition to the settings of every service."""

    page_token_key: SecretStr
    """The key that signs page tokens: a long random text, the same in all processes."""
    mongo_url: MongoUrl
    """The database: mongodb://host:port/name of a replica set."""
