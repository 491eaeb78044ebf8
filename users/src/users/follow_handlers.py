"""Who follows whom: the rpcs of UsersService in proto/postbus/users/v1/users.proto that are about
follows.
"""

from dataclasses import dataclass

from postbus.users.v1 import (
    FollowChanged,
    FollowRequest,
    FollowResponse,
    ListFollowedIdsRequest,
    ListFollowedIdsResponse,
    ListFollowersRequest,
    ListFollowersResponse,
    ListFollowingRequest,
    ListFollowingResponse,
    UnfollowRequest,
    UnfollowResponse,
    UserDeleted,
    UserErasureContinued,
    UsersServiceBase,
)
from shared.bus import EventPattern, MessagePattern, publish
from shared.context import Context
from shared.data.pages import Pages
from shared.errors import invalid_field
from users.follows import FollowChange, FollowRepository, position
from users.profiles import Profiles
from users.repository import UserRepository

__all__ = ["FollowHandlers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowHandlers:
    """Follows."""

    users: UserRepository
    follows: FollowRepository
    profiles: Profiles
    pages: Pages

    @MessagePattern(UsersServiceBase.follow)
    async def follow(self, request: FollowRequest, context: Context) -> FollowResponse:
        """Follow, and tell everyone if that is new."""
        caller = await self.users.of_caller(context)
        user = await self.profiles.named(request.username)
        if user.id == caller.id:
            message = "Users can't follow themselves."
            raise invalid_field("FOLLOWS_SELF", "username", "not_caller", message)
        change = await self.follows.add(caller.id, user.id)
        context.learn_revision(change.revision)
        await _publish_change(caller.id, user.id, following=True, change=change)
        return FollowResponse(profile=await self.profiles.fresh(user, context))

    @MessagePattern(UsersServiceBase.unfollow)
    async def unfollow(self, request: UnfollowRequest, context: Context) -> UnfollowResponse:
        """Follow no longer, and tell everyone if that is new."""
        caller = await self.users.of_caller(context)
        user = await self.profiles.named(request.username)
        change = await self.follows.remove(caller.id, user.id)
        context.learn_revision(change.revision)
        await _publish_change(caller.id, user.id, following=False, change=change)
        return UnfollowResponse(profile=await self.profiles.fresh(user, context))

    @MessagePattern(UsersServiceBase.list_followers)
    async def list_followers(
        self, request: ListFollowersRequest, context: Context
    ) -> ListFollowersResponse:
        """Return a page of those who follow a user."""
        user, page = await self.profiles.named(request.username), self.pages.of(request)
        found, token = page.cut(await self.follows.followers(user.id, page), position)
        return ListFollowersResponse(
            profiles=await self.profiles.shown([each.user for each in found], context),
            next_page_token=token,
            total=user.follower_count if request.include_total else None,
        )

    @MessagePattern(UsersServiceBase.list_following)
    async def list_following(
        self, request: ListFollowingRequest, context: Context
    ) -> ListFollowingResponse:
        """Return a page of those whom a user follows."""
        user, page = await self.profiles.named(request.username), self.pages.of(request)
        found, token = page.cut(await self.follows.following(user.id, page), position)
        return ListFollowingResponse(
            profiles=await self.profiles.shown([each.user for each in found], context),
            next_page_token=token,
            total=user.following_count if request.include_total else None,
        )

    @MessagePattern(UsersServiceBase.list_followed_ids)
    async def list_followed_ids(
        self, _request: ListFollowedIdsRequest, context: Context
    ) -> ListFollowedIdsResponse:
        """Return whom the caller follows, unless the session has ended."""
        caller = await self.users.of_caller(context)
        ids = await self.follows.followed_ids(caller.id)
        return ListFollowedIdsResponse(ids=list(ids))

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


async def _publish_change(
    follower_id: str, followed_id: str, *, following: bool, change: FollowChange
) -> None:
    """Publish FollowChanged, if there was a change."""
    if change.version:
        await publish(
            FollowChanged(
                follow_id=f"{follower_id}/{followed_id}",
                follower_id=follower_id,
                followed_id=followed_id,
                following=following,
                version=change.version,
                follower_revision=change.revision,
            )
        )
