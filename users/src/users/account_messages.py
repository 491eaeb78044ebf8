"""Conversion of accounts to messages of the contract."""

from collections.abc import Collection

from postbus.users.v1 import Profile, UserProfileUpdated
from postbus.users.v1 import User as UserMessage
from users.models import User

__all__ = ["to_profile", "to_profile_updated", "to_user"]


def to_user(user: User) -> UserMessage:
    """Return the account with the fields that only its owner may read."""
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
    """Return the public profile; `followed` are the ids of users that the caller follows."""
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
    """Return the event for a changed username, display name or picture."""
    return UserProfileUpdated(
        user_id=user.id,
        username=user.username,
        display_name=user.display_name,
        image_url=user.image_url,
        version=user.version,
        revision=user.revision,
    )
