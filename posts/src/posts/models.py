"""What is stored of posts and of what hangs on them.

Times are microseconds since 1970 in UTC: MongoDB's own keep milliseconds. `shape` counts how the
documents of a collection have looked; `posts.migrations` brings older ones up to date.
"""

from datetime import datetime
from typing import ClassVar

from odmantic import Field, Index, Model
from odmantic.query import desc
from pymongo import IndexModel

__all__ = [
    "DRAFT",
    "PUBLISHED",
    "Author",
    "Comment",
    "Follow",
    "Like",
    "Notification",
    "Post",
    "Tag",
]

DRAFT = "draft"
PUBLISHED = "published"


class Post(Model):
    """A post. `version` counts its changes."""

    model_config: ClassVar = {
        "collection": "posts",
        "indexes": lambda: [
            Index(Post.slugs, unique=True),
            Index(Post.status, desc(Post.place)),
            Index(Post.author_id, Post.status, desc(Post.place)),
            Index(Post.tag_keys, Post.status, desc(Post.place)),
            Index(Post.words, Post.status, desc(Post.place)),
            Index(Post.status, Post.updated_at, Post.id),
            Index(Post.author_id, Post.status, Post.updated_at, Post.id),
        ],
    }

    id: str = Field(primary_field=True)
    author_id: str
    slug: str
    slugs: list[str]
    """The current one first, then the former ones, which lead to the post and to no other."""
    title: str
    summary: str = ""
    body: str = ""
    tags: list[str]
    tag_keys: list[str]
    """The tags without regard to case."""
    words: list[str]
    """What it is found by."""
    status: str
    place: str
    """In lists: when it was first published, or created if it never was, see `times.place`."""
    created_at: int
    updated_at: int
    published_at: int | None = None
    like_count: int = 0
    comment_count: int = 0
    version: int = 1
    shape: int = 2

    @property
    def published(self) -> bool:
        """Whether everyone may read it."""
        return self.status == PUBLISHED


class Tag(Model):
    """How many published posts have a tag."""

    model_config: ClassVar = {
        "collection": "tags",
        "indexes": lambda: [Index(desc(Tag.post_count), Tag.id)],
    }

    id: str = Field(primary_field=True)
    """The tag without regard to case."""
    name: str
    post_count: int


class Like(Model):
    """A user likes a post. The id is both ids, with a slash between them."""

    model_config: ClassVar = {
        "collection": "likes",
        "indexes": lambda: [
            Index(Like.post_id, desc(Like.place), desc(Like.id)),
            Index(Like.user_id, desc(Like.place)),
        ],
    }

    id: str = Field(primary_field=True)
    post_id: str
    user_id: str
    place: str
    """Among the user's likes: when it was, see `times.place`."""


class Comment(Model):
    """A comment. `version` counts its changes."""

    model_config: ClassVar = {
        "collection": "comments",
        "indexes": lambda: [
            Index(Comment.post_id, desc(Comment.id)),
            Index(Comment.author_id),
        ],
    }

    id: str = Field(primary_field=True)
    post_id: str
    author_id: str
    body: str
    created_at: int
    updated_at: int
    version: int = 1
    shape: int = 1


class Author(Model):
    """What posts show of a user, kept up to date by the events of `users`."""

    model_config: ClassVar = {"collection": "authors", "indexes": lambda: [Index(Author.name_key)]}

    id: str = Field(primary_field=True)
    username: str
    name_key: str
    """The username without regard to case."""
    display_name: str = ""
    image_url: str = ""
    version: int = 1
    deleted: bool = False
    """Nothing of the user may come back."""
    revision: int = 0
    """Every change of the user up to this revision is stored here, see `posts.revisions`."""
    ahead: list[int] | None = None
    """Stored revisions after a missing one, in ascending order."""
    shape: int = 2

    @property
    def known(self) -> bool:
        """Whether the name is known: a follow may be stored before the event of the sign-up."""
        return self.version > 0


class Follow(Model):
    """A user follows another: what `users` has said. The id is both ids, as in FollowChanged."""

    model_config: ClassVar = {
        "collection": "follows",
        "indexes": lambda: [Index(Follow.follower_id), Index(Follow.followed_id)],
    }

    id: str = Field(primary_field=True)
    follower_id: str
    followed_id: str


class Notification(Model):
    """Something that others did."""

    model_config: ClassVar = {
        "collection": "notifications",
        "indexes": lambda: [
            Index(Notification.key, unique=True),
            Index(Notification.user_id, Notification.hidden, desc(Notification.id)),
            Index(
                Notification.user_id,
                Notification.hidden,
                Notification.read,
                desc(Notification.id),
            ),
            Index(Notification.actor_id),
            Index(Notification.post_id),
            Index(Notification.comment_id),
            IndexModel("expires_at", expireAfterSeconds=0),
        ],
    }

    id: str = Field(primary_field=True)
    key: str
    """What happened, once for each user: another like after an unlike is nothing new."""
    user_id: str
    kind: int
    actor_id: str
    post_id: str = ""
    comment_id: str = ""
    created_at: int
    read: bool = False
    hidden: bool = False
    """What it tells of was taken back."""
    expires_at: datetime
