"""What is stored of posts and their authors."""

from datetime import datetime
from typing import ClassVar

from odmantic import Field, Index, Model
from odmantic.query import desc

__all__ = ["Author", "Post"]


class Post(Model):
    """A post. `version` counts its changes."""

    model_config: ClassVar = {
        "collection": "posts",
        "indexes": lambda: [
            Index(Post.author_id, desc(Post.id)),
        ],
    }

    id: str = Field(primary_field=True)
    author_id: str
    title: str
    body: str
    created_at: datetime
    updated_at: datetime
    version: int = 1


class Author(Model):
    """What posts show of a user, kept up to date by the events of `users`."""

    model_config: ClassVar = {"collection": "authors"}

    id: str = Field(primary_field=True)
    username: str
