"""The documents of `posts` and their indexes.

Times are microseconds since 1970 in UTC, because the times of MongoDB have milliseconds. `shape` is
the schema version of a document; `posts.migrations` updates older documents.
"""

from datetime import datetime
from typing import ClassVar

from odmantic import Field, Index, Model
from odmantic.query import desc
from pymongo import IndexModel

from postbus.users.v1 import Profile, UserProfileUpdated
from shared.data.mongo_database import Mongo

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
    "create_indexes",
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
    """The current slug first, then the former ones, which still identify the post."""
    title: str
    summary: str = ""
    body: str = ""
    tags: list[str]
    tag_keys: list[str]
    """The keys of the tags, see `post_texts.tag_key`."""
    words: list[str]
    """The distinct words of title, summary and tags, for full-text search."""
    status: str
    place: str
    """The sort key of lists: the time of the first publication, or else of the creation."""
    created_at: int
    updated_at: int
    published_at: int | None = None
    like_count: int = 0
    comment_count: int = 0
    version: int = 1
    shape: int = 2

    @property
    def published(self) -> bool:
        """Whether the post is readable by every user."""
        return self.status == PUBLISHED


class Tag(Model):
    """The number of published posts that have a tag."""

    model_config: ClassVar = {
        "collection": "tags",
        "indexes": lambda: [Index(desc(Tag.post_count), Tag.id)],
    }

    id: str = Field(primary_field=True)
    """The key of the tag, see `post_texts.tag_key`."""
    name: str
    post_count: int


class Like(Model):
    """A like. The id consists of the ids of post and user with a slash between them."""

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
    """The sort key among the user's likes, by the time of the like."""


class Comment(Model):
    """A comment. `version` counts its changes."""

    model_config: ClassVar = {
        "collection": "comments",
        "indexes": lambda: [
            Index(Comment.post_id, desc(Comment.id)),
            Index(Comment.author_id, desc(Comment.id)),
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
    """The projection of a user, kept up to date by the events of `users`."""

    model_config: ClassVar = {"collection": "authors", "indexes": lambda: [Index(Author.name_key)]}

    id: str = Field(primary_field=True)
    username: str
    name_key: str
    """The username in lower case."""
    display_name: str = ""
    image_url: str = ""
    version: int = 1
    deleted: bool = False
    """Whether this is a tombstone. A tombstone is never updated."""
    revision: int = 0
    """Every change of the user up to this revision is stored, see `posts.authors`."""
    ahead: list[int] | None = None
    """Stored revisions after a missing one, in ascending order."""
    shape: int = 2

    @classmethod
    def from_message(cls, user_id: str, message: Profile | UserProfileUpdated) -> "Author":
        """Return the author that a message of `users` describes."""
        return cls(
            id=user_id,
            username=message.username,
            name_key=message.username.lower(),
            display_name=message.display_name,
            image_url=message.image_url,
            version=message.version,
        )

    @classmethod
    def tombstone(cls, user_id: str) -> "Author":
        """Return the record of a deleted user, which has only the id."""
        return cls(id=user_id, username="", name_key="", deleted=True)

    @classmethod
    def unnamed(cls, user_id: str) -> "Author":
        """Return the record of a user before the event of the sign-up."""
        return cls(id=user_id, username="", name_key="", version=0)

    @property
    def has_profile(self) -> bool:
        """Whether the name is stored: a follow can be stored before the event of the sign-up."""
        return self.version > 0


class Follow(Model):
    """The projection of a follow. The id is the `follow_id` of FollowChanged: both user ids."""

    model_config: ClassVar = {
        "collection": "follows",
        "indexes": lambda: [Index(Follow.follower_id), Index(Follow.followed_id)],
    }

    id: str = Field(primary_field=True)
    follower_id: str
    followed_id: str


class Notification(Model):
    """A notification of an action of another user."""

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
    """Unique per action and user, so that a like after an unlike is not a new notification."""
    user_id: str
    kind: int
    actor_id: str
    post_id: str = ""
    comment_id: str = ""
    created_at: int
    read: bool = False
    hidden: bool = False
    """Whether the action was undone."""
    expires_at: datetime


async def create_indexes(mongo: Mongo) -> None:
    """Create the indexes of the inbox and of every model."""
    await mongo.create_indexes(Post, Tag, Like, Comment, Author, Follow, Notification)
