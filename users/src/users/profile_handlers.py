"""Handlers for the rpcs of UsersService that return public profiles."""

from dataclasses import dataclass

from postbus.users.v1 import (
    BatchGetUsersRequest,
    BatchGetUsersResponse,
    GetUserRequest,
    GetUserResponse,
    SearchUsersRequest,
    SearchUsersResponse,
    UsersServiceBase,
)
from shared.bus import MessagePattern
from shared.context import Context
from shared.data.pages import Pages
from users.account_repository import AccountRepository
from users.profiles import Profiles

__all__ = ["ProfileHandlers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileHandlers:
    """Handlers that read profiles of any user."""

    accounts: AccountRepository
    profiles: Profiles
    pages: Pages

    @MessagePattern(UsersServiceBase.get_user)
    async def get_user(self, request: GetUserRequest, context: Context) -> GetUserResponse:
        """Return the profile of one user."""
        user = await self.profiles.find(request.username)
        [profile] = await self.profiles.to_messages([user], context)
        return GetUserResponse(profile=profile)

    @MessagePattern(UsersServiceBase.search_users)
    async def search_users(
        self, request: SearchUsersRequest, context: Context
    ) -> SearchUsersResponse:
        """Return a page of the users with matching names."""
        page = self.pages.of(request)
        found = await self.accounts.search(request.q, page)
        users, token = page.cut(found, lambda user: (user.username.lower(),))
        return SearchUsersResponse(
            profiles=await self.profiles.to_messages(users, context),
            next_page_token=token,
            total=await page.total(self.accounts.count, request.q),
        )

    @MessagePattern(UsersServiceBase.batch_get_users)
    async def batch_get_users(
        self, request: BatchGetUsersRequest, context: Context
    ) -> BatchGetUsersResponse:
        """Return the profiles that exist; SESSION_REVOKED if the caller's session has ended."""
        if context.caller is not None:
            await self.accounts.get_caller(context)
        users = await self.accounts.get_many(request.ids)
        return BatchGetUsersResponse(profiles=await self.profiles.to_messages(users, context))
