"""What is stored of a user."""

from datetime import datetime

from sqlalchemy import DateTime, Index, func
from sqlmodel import Field, SQLModel

__all__ = ["EMAIL_INDEX", "USERNAME_INDEX", "User"]

USERNAME_INDEX = "users_username_key"
EMAIL_INDEX = "users_email_key"


class User(SQLModel, table=True):
    """An account. Username and email are unique without regard to case."""

    __tablename__ = "users"

    id: str = Field(primary_key=True, max_length=36)
    username: str = Field(max_length=30)
    email: str = Field(max_length=254)
    password_hash: str = Field(max_length=200)
    created_at: datetime = Field(sa_type=DateTime(timezone=True))


Index(USERNAME_INDEX, func.lower(User.username), unique=True)
Index(EMAIL_INDEX, func.lower(User.email), unique=True)
