"""Accounts as the contract shows them."""

from collections.abc import Collection

from postbus.users.v1 import Profile, UserProfileUpdated
from postbus.users.v1 import User as UserMessage
from users.models import User

__all__ = ["to_profile", "to_profile_updated", "to_user"]


def to_user(user: User) -> UserMessage:
    """Return an account as its owner sees it."""
    return UserMessage(
        id=user.id,
        username=user.username,
        email=user.email,
        created_at=user.created_at,
        display_name=user.display_name,
        bio=user.bio,
        image_url=user.image_url,
        updated_at=user.updated_at,
        follower_count=user.follower_count,
        following_count=user.following_count,
        version=user.version,
    )


def to_profile(user: User, followed: Collection[str] = ()) -> Profile:
    """Return an account as everyone sees it; `followed` are the ids that the caller follows."""
    return Profile(
        id=user.id,
        username=user.username,
        created_at=user.created_at,
        display_name=user.display_name,
        bio=user.bio,
        image_url=user.image_url,
        follower_count=user.follower_count,
        following_count=user.following_count,
        followed=user.id in followed,
        version=user.version,
    )


def to_profile_updated(user: User) -> UserProfileUpdated:
    """Return what others have to know of a changed account."""
    return UserProfileUpdated(
        user_id=user.id,
        username=user.username,
        display_name=user.display_name,
        image_url=user.image_url,
        version=user.version,
        revision=user.revision,
    )
