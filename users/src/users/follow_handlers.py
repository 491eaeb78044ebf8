"""Handlers for the rpcs of UsersService and the events that are about follows."""

from dataclasses import dataclass

from postbus import reasons
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
from shared.outbox.unit_of_work import Store
from users.account_repository import AccountRepository
from users.follow_repository import FollowChange, FollowRepository, sort_key
from users.profiles import Profiles

__all__ = ["FollowHandlers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowHandlers:
    """Changes and lists follows, and erases the follows and stored replies of deleted accounts."""

    accounts: AccountRepository
    follows: FollowRepository
    profiles: Profiles
    pages: Pages
    store: Store

    @MessagePattern(UsersServiceBase.follow)
    async def follow(self, request: FollowRequest, context: Context) -> FollowResponse:
        """Add the caller's follow of a user, and publish FollowChanged if it is new."""
        caller = await self.accounts.get_caller(context)
        user = await self.profiles.find(request.username)
        if user.id == caller.id:
            message = "Users cannot follow themselves."
            raise invalid_field(reasons.FOLLOWS_SELF, "username", "not_caller", message)
        change = await self.follows.add(caller.id, user.id)
        context.raise_revision(change.revision)
        await _publish_change(caller.id, user.id, following=True, change=change)
        return FollowResponse(profile=await self.profiles.reloaded(user, context))

    @MessagePattern(UsersServiceBase.unfollow)
    async def unfollow(self, request: UnfollowRequest, context: Context) -> UnfollowResponse:
        """Remove the caller's follow of a user, and publish FollowChanged if there was one."""
        caller = await self.accounts.get_caller(context)
        user = await self.profiles.find(request.username)
        change = await self.follows.remove(caller.id, user.id)
        context.raise_revision(change.revision)
        await _publish_change(caller.id, user.id, following=False, change=change)
        return UnfollowResponse(profile=await self.profiles.reloaded(user, context))

    @MessagePattern(UsersServiceBase.list_followers)
    async def list_followers(
        self, request: ListFollowersRequest, context: Context
    ) -> ListFollowersResponse:
        """Return a page of the followers of a user."""
        user, page = await self.profiles.find(request.username), self.pages.of(request)
        found, token = page.cut(await self.follows.list_followers(user.id, page), sort_key)
        return ListFollowersResponse(
            profiles=await self.profiles.to_messages([each.user for each in found], context),
            next_page_token=token,
            total=user.follower_count if request.include_total else None,
        )

    @MessagePattern(UsersServiceBase.list_following)
    async def list_following(
        self, request: ListFollowingRequest, context: Context
    ) -> ListFollowingResponse:
        """Return a page of the users that a user follows."""
        user, page = await self.profiles.find(request.username), self.pages.of(request)
        found, token = page.cut(await self.follows.list_following(user.id, page), sort_key)
        return ListFollowingResponse(
            profiles=await self.profiles.to_messages([each.user for each in found], context),
            next_page_token=token,
            total=user.following_count if request.include_total else None,
        )

    @MessagePattern(UsersServiceBase.list_followed_ids)
    async def list_followed_ids(
        self, _request: ListFollowedIdsRequest, context: Context
    ) -> ListFollowedIdsResponse:
        """Return the ids of all users that the caller follows."""
        caller = await self.accounts.get_caller(context)
        ids = await self.follows.followed_ids(caller.id)
        return ListFollowedIdsResponse(ids=list(ids))

    @EventPattern(UserDeleted)
    async def user_deleted(self, event: UserDeleted, _context: Context) -> None:
        """Erase the first batch of the user's follows."""
        await self._erase_batch(event.user_id)

    @EventPattern(UserErasureContinued)
    async def user_erasure_continued(self, event: UserErasureContinued, _context: Context) -> None:
        """Erase the next batch of the user's follows."""
        await self._erase_batch(event.user_id)

    async def _erase_batch(self, user_id: str) -> None:
        """Erase one batch, and publish UserErasureContinued in its transaction if more remain."""
        more_follows = await self.follows.erase_batch(user_id)
        if await self.store.erase_replies(user_id) or more_follows:
            await publish(UserErasureContinued(user_id=user_id))


async def _publish_change(
    follower_id: str, followed_id: str, *, following: bool, change: FollowChange
) -> None:
    """Publish FollowChanged, unless nothing was changed."""
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
