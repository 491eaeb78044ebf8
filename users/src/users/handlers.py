"""The people who use the system: one method per rpc of UsersService in
proto/postbus/users/v1/users.proto.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from betterproto.lib.google.protobuf import Empty

from postbus.users.v1 import (
    BatchGetUsersRequest,
    BatchGetUsersResponse,
    DeleteMeRequest,
    FollowChanged,
    FollowRequest,
    FollowResponse,
    GetMeRequest,
    GetMeResponse,
    GetUserRequest,
    GetUserResponse,
    ListFollowedIdsRequest,
    ListFollowedIdsResponse,
    ListFollowersRequest,
    ListFollowersResponse,
    ListFollowingRequest,
    ListFollowingResponse,
    Profile,
    SearchUsersRequest,
    SearchUsersResponse,
    SessionsRevoked,
    UnfollowRequest,
    UnfollowResponse,
    UpdateMeRequest,
    UpdateMeResponse,
    UserDeleted,
    UserErasureContinued,
    UsersServiceBase,
)
from shared.context import Context
from shared.errors import Code, ServiceError, require_version
from shared.messagebus import EventPattern, MessagePattern, publish
from shared.pages import Pages
from users.follows import FollowRepository, position
from users.messages import to_profile, to_profile_updated, to_user
from users.models import User, search_text
from users.repository import UserRepository
from users.sessions import SessionRepository

__all__ = ["UserHandlers"]

_CHANGEABLE = {"username", "email", "display_name", "bio", "image_url"}
_SHOWN = {"username", "display_name", "image_url"}
"""What posts and comments show of their author."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserHandlers:
    """The people who use the system."""

    users: UserRepository
    sessions: SessionRepository
    follows: FollowRepository
    pages: Pages

    @MessagePattern(UsersServiceBase.get_me)
    async def get_me(self, _request: GetMeRequest, context: Context) -> GetMeResponse:
        """Return the caller's account."""
        return GetMeResponse(user=to_user(await self.users.of_caller(context)))

    @MessagePattern(UsersServiceBase.update_me)
    async def update_me(self, request: UpdateMeRequest, context: Context) -> UpdateMeResponse:
        """Change the fields that the mask names and that are not so already."""
        user = await self.users.of_caller(context, lock=True)
        require_version(user.version, request.expected_version)
        changes = _changes(request, user)
        if changes:
            await self.users.change(user, _with_words(changes, user))
        if _SHOWN & changes.keys():
            await publish(to_profile_updated(user))
        return UpdateMeResponse(user=to_user(user))

    @MessagePattern(UsersServiceBase.delete_me)
    async def delete_me(self, request: DeleteMeRequest, context: Context) -> Empty:
        """Delete the account at once; what hangs on it goes with the event."""
        user = await self.users.of_caller(context, lock=True)
        require_version(user.version, request.expected_version)
        ended = await self.sessions.end(user.id)
        await self.users.delete(user.id)
        await publish(SessionsRevoked(user_id=user.id, session_ids=ended))
        await publish(UserDeleted(user_id=user.id))
        return Empty()

    @EventPattern(UserDeleted)
    async def user_deleted(self, event: UserDeleted, _context: Context) -> None:
        """Begin to remove the follows."""
        await self._erase(event.user_id)

    @EventPattern(UserErasureContinued)
    async def user_erasure_continued(self, event: UserErasureContinued, _context: Context) -> None:
        """Remove more of them."""
        await self._erase(event.user_id)

    async def _erase(self, user_id: str) -> None:
        """Remove some follows, and come back for the rest: nothing is lost between two steps."""
        if await self.follows.erase(user_id):
            await publish(UserErasureContinued(user_id=user_id))

    @MessagePattern(UsersServiceBase.get_user)
    async def get_user(self, request: GetUserRequest, context: Context) -> GetUserResponse:
        """Return what everyone may see."""
        [profile] = await self._profiles([await self._named(request.username)], context)
        return GetUserResponse(profile=profile)

    @MessagePattern(UsersServiceBase.search_users)
    async def search_users(
        self, request: SearchUsersRequest, context: Context
    ) -> SearchUsersResponse:
        """Return a page of those whose names fit."""
        page = self.pages.of(request)
        found = await self.users.search(request.q, page)
        users, token = page.cut(found, lambda user: (user.username.lower(),))
        return SearchUsersResponse(
            profiles=await self._profiles(users, context),
            next_page_token=token,
            total=await self.users.count(request.q) if request.include_total else None,
        )

    @MessagePattern(UsersServiceBase.batch_get_users)
    async def batch_get_users(
        self, request: BatchGetUsersRequest, context: Context
    ) -> BatchGetUsersResponse:
        """Return the profiles that there are."""
        users = await self.users.by_ids(request.ids)
        return BatchGetUsersResponse(profiles=await self._profiles(users, context))

    @MessagePattern(UsersServiceBase.list_followed_ids)
    async def list_followed_ids(
        self, _request: ListFollowedIdsRequest, context: Context
    ) -> ListFollowedIdsResponse:
        """Return whom the caller follows."""
        ids = await self.follows.followed_ids(context.user_id)
        return ListFollowedIdsResponse(ids=list(ids))

    @MessagePattern(UsersServiceBase.follow)
    async def follow(self, request: FollowRequest, context: Context) -> FollowResponse:
        """Follow, and tell everyone if that is new."""
        caller = await self.users.of_caller(context)
        user = await self._named(request.username)
        if user.id == caller.id:
            raise ServiceError(Code.INVALID_ARGUMENT, "FOLLOWS_SELF", "Nobody follows themselves.")
        version = await self.follows.add(caller.id, user.id)
        await _tell(caller.id, user.id, following=True, version=version)
        return FollowResponse(profile=await self._fresh(user, context))

    @MessagePattern(UsersServiceBase.unfollow)
    async def unfollow(self, request: UnfollowRequest, context: Context) -> UnfollowResponse:
        """Follow no longer, and tell everyone if that is new."""
        caller = await self.users.of_caller(context)
        user = await self._named(request.username)
        version = await self.follows.remove(caller.id, user.id)
        await _tell(caller.id, user.id, following=False, version=version)
        return UnfollowResponse(profile=await self._fresh(user, context))

    @MessagePattern(UsersServiceBase.list_followers)
    async def list_followers(
        self, request: ListFollowersRequest, context: Context
    ) -> ListFollowersResponse:
        """Return a page of those who follow a user."""
        user, page = await self._named(request.username), self.pages.of(request)
        found, token = page.cut(await self.follows.followers(user.id, page), position)
        return ListFollowersResponse(
            profiles=await self._profiles([each.user for each in found], context),
            next_page_token=token,
            total=user.follower_count if request.include_total else None,
        )

    @MessagePattern(UsersServiceBase.list_following)
    async def list_following(
        self, request: ListFollowingRequest, context: Context
    ) -> ListFollowingResponse:
        """Return a page of those whom a user follows."""
        user, page = await self._named(request.username), self.pages.of(request)
        found, token = page.cut(await self.follows.following(user.id, page), position)
        return ListFollowingResponse(
            profiles=await self._profiles([each.user for each in found], context),
            next_page_token=token,
            total=user.following_count if request.include_total else None,
        )

    async def _named(self, username: str) -> User:
        user = await self.users.by_username(username)
        if user is None:
            raise ServiceError(Code.NOT_FOUND, "USER_NOT_FOUND", "There is no such user.")
        return user

    async def _fresh(self, user: User, context: Context) -> Profile:
        """Return the profile with the counters as they are now."""
        await self.users.refresh(user)
        [profile] = await self._profiles([user], context)
        return profile

    async def _profiles(self, users: Sequence[User], context: Context) -> list[Profile]:
        """Return profiles as the caller sees them."""
        followed: set[str] = set()
        if context.caller is not None and users:
            ids = [user.id for user in users]
            followed = await self.follows.followed_by(context.caller.user_id, ids)
        return [to_profile(user, followed) for user in users]


async def _tell(follower_id: str, followed_id: str, *, following: bool, version: int) -> None:
    """Publish a change; a `version` of 0 says that there was none."""
    if version:
        await publish(
            FollowChanged(
                follow_id=f"{follower_id}/{followed_id}",
                follower_id=follower_id,
                followed_id=followed_id,
                following=following,
                version=version,
            )
        )


def _changes(request: UpdateMeRequest, user: User) -> dict[str, Any]:
    """Return the columns that get another value."""
    paths = set(request.update_mask.paths)
    if not paths <= _CHANGEABLE:
        raise ServiceError(
            Code.INVALID_ARGUMENT,
            "UPDATE_MASK_INVALID",
            f"Name what to change: {', '.join(sorted(_CHANGEABLE))}.",
        )
    wanted = {path: getattr(request, path) or "" for path in paths}
    for name in ("username", "email"):
        if name in wanted and not wanted[name]:
            raise ServiceError(
                Code.INVALID_ARGUMENT, f"{name.upper()}_MISSING", f"An account needs its {name}."
            )
    return {path: value for path, value in wanted.items() if value != getattr(user, path)}


def _with_words(changes: dict[str, Any], user: User) -> dict[str, Any]:
    """Add what changes with every change."""
    names = (changes.get(name, getattr(user, name)) for name in ("username", "display_name"))
    return changes | {
        "search": search_text(*names),
        "updated_at": datetime.now(UTC),
        "version": user.version + 1,
    }
