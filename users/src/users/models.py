"""The tables of accounts, sessions, follows and failed log-ins."""

from datetime import datetime
from typing import ClassVar

from sqlalchemy import BigInteger, Computed, DateTime, ForeignKey, Index, func, text
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlmodel import Column, Field, SQLModel, String

from shared.data.search_terms import distinct_words

__all__ = [
    "EMAIL_INDEX",
    "USERNAME_INDEX",
    "Follow",
    "LoginFailures",
    "Session",
    "User",
    "search_text",
]

USERNAME_INDEX = "users_username_key"
EMAIL_INDEX = "users_email_key"
_TIME = DateTime(timezone=True)
_SEARCH_LENGTH = 400
"""Characters of the column `search`."""


class User(SQLModel, table=True):
    """An account. Username and email are unique without regard to case."""

    __tablename__ = "users"
    __table_args__ = (
        Column("words", TSVECTOR, Computed("to_tsvector('simple', search)", persisted=True)),
        Index("users_words", "words", postgresql_using="gin"),
    )
    __mapper_args__: ClassVar = {"exclude_properties": ["words"]}  # only PostgreSQL reads it

    id: str = Field(primary_key=True, max_length=36)
    username: str = Field(max_length=40)
    email: str = Field(max_length=254)
    password_hash: str = Field(max_length=200)
    password_version: int = Field(default=1, sa_column_kwargs={"server_default": "1"})
    """Number of changes of the password; a rehash is not a change."""
    display_name: str = Field(default="", max_length=50)
    bio: str = Field(default="", max_length=1000)
    image_url: str = Field(default="", max_length=500)
    search: str = Field(default="", max_length=_SEARCH_LENGTH)
    """The words of the names; see `search_text`."""
    follower_count: int = 0
    following_count: int = 0
    created_at: datetime = Field(sa_type=_TIME)
    updated_at: datetime = Field(sa_type=_TIME)
    version: int = 1
    revision: int = Field(default=0, sa_type=BigInteger)
    """Number of changes that other services keep in projections; see UserProfileUpdated."""


Index(USERNAME_INDEX, func.lower(User.username), unique=True)
Index(EMAIL_INDEX, func.lower(User.email), unique=True)


def search_text(*names: str) -> str:
    """Return the search text of an account: the words of its names, truncated to the column."""
    return " ".join(distinct_words(*names))[:_SEARCH_LENGTH]


class Session(SQLModel, table=True):
    """A log-in of a user on one device. Only hashes of its refresh token are stored."""

    __tablename__ = "sessions"

    id: str = Field(primary_key=True, max_length=36)
    user_id: str = Field(
        sa_column=Column(String(36), ForeignKey("users.id", ondelete="CASCADE"), nullable=False)
    )
    device: str = Field(max_length=100)
    family_hash: bytes
    """SHA-256 of the family secret of the refresh tokens, which all tokens of the session share."""
    secret_hash: bytes
    """SHA-256 of the secret of the current refresh token."""
    created_at: datetime = Field(sa_type=_TIME)
    refreshed_at: datetime = Field(sa_type=_TIME)
    expires_at: datetime = Field(sa_type=_TIME)
    answer: bytes | None = None
    """The response that issued the current refresh token, sealed (see `sealed_responses`).

    It is purged after a minute."""


Index("sessions_of_user", Session.user_id, Session.id)
Index(
    "sessions_answered",
    Session.refreshed_at,  # type: ignore[arg-type]
    postgresql_where=text("answer IS NOT NULL"),
)


class Follow(SQLModel, table=True):
    """One user follows another. Either may be deleted: see FollowRepository.erase_batch."""

    __tablename__ = "follows"

    follower_id: str = Field(primary_key=True, max_length=36)
    followed_id: str = Field(primary_key=True, max_length=36)
    followed_at: datetime = Field(sa_type=_TIME)


Index("follows_of_followed", Follow.followed_id, Follow.followed_at, Follow.follower_id)  # type: ignore[arg-type]
Index("follows_of_follower", Follow.follower_id, Follow.followed_at, Follow.followed_id)  # type: ignore[arg-type]


class LoginFailures(SQLModel, table=True):
    """Failed attempts under one key of the log-in throttle; see `throttle`."""

    __tablename__ = "login_failures"

    login_hash: str = Field(primary_key=True, max_length=64)
    """SHA-256 of the key; see `throttle`."""
    count: float
    """Failures. It decreases over time, so that it can be a fraction."""
    last_at: datetime = Field(sa_type=_TIME, index=True)
