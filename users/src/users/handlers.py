"""The people who use the system: the rpcs of UsersService in
proto/postbus/users/v1/users.proto that are about accounts.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from betterproto.lib.google.protobuf import Empty

from postbus.users.v1 import (
    BatchGetUsersRequest,
    BatchGetUsersResponse,
    DeleteMeRequest,
    GetMeRequest,
    GetMeResponse,
    GetUserRequest,
    GetUserResponse,
    SearchUsersRequest,
    SearchUsersResponse,
    SessionsRevoked,
    UpdateMeRequest,
    UpdateMeResponse,
    UserDeleted,
    UsersServiceBase,
)
from shared.bus import MessagePattern, publish
from shared.context import Context
from shared.data.pages import Pages
from shared.errors import invalid_field, require_version
from users.credentials import require_unreserved
from users.messages import to_profile_updated, to_user
from users.models import User, search_text
from users.profiles import Profiles
from users.repository import UserRepository
from users.security_log import SecurityLog
from users.sessions import SessionRepository

__all__ = ["UserHandlers"]

_CHANGEABLE = {"username", "email", "display_name", "bio", "image_url"}
_IDENTIFYING = {"username", "email"}
"""What one logs in with: a session that was opened long ago may not change it."""
_SHOWN = {"username", "display_name", "image_url"}
"""What posts and comments show of their author."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserHandlers:
    """The people who use the system."""

    users: UserRepository
    sessions: SessionRepository
    profiles: Profiles
    pages: Pages
    log: SecurityLog

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
        if _IDENTIFYING & changes.keys():
            await self.sessions.require_recent(context)
        if "username" in changes:
            require_unreserved(changes["username"])
        shown = bool(_SHOWN & changes.keys())
        if shown:
            changes["revision"] = user.revision + 1
        if changes:
            await self.users.change(user, _with_words(changes, user))
        if shown:
            context.learn_revision(user.revision)
            await publish(to_profile_updated(user))
        return UpdateMeResponse(user=to_user(user))

    @MessagePattern(UsersServiceBase.delete_me)
    async def delete_me(self, request: DeleteMeRequest, context: Context) -> Empty:
        """Delete the account at once; what hangs on it goes with the event."""
        user = await self.users.of_caller(context, lock=True)
        require_version(user.version, request.expected_version)
        await self.sessions.require_recent(context)
        ended = await self.sessions.end(user.id)
        await self.users.delete(user.id)
        context.learn_revision(user.revision + 1)  # beyond every copy, so that `users` is asked
        await publish(SessionsRevoked(user_id=user.id, session_ids=ended))
        await publish(UserDeleted(user_id=user.id))
        self.log.write("account.deleted", context, user_id=user.id, ended_sessions=len(ended))
        return Empty()

    @MessagePattern(UsersServiceBase.get_user)
    async def get_user(self, request: GetUserRequest, context: Context) -> GetUserResponse:
        """Return what everyone may see."""
        [profile] = await self.profiles.shown(
            [await self.profiles.named(request.username)], context
        )
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
            profiles=await self.profiles.shown(users, context),
            next_page_token=token,
            total=await self.users.count(request.q) if request.include_total else None,
        )

    @MessagePattern(UsersServiceBase.batch_get_users)
    async def batch_get_users(
        self, request: BatchGetUsersRequest, context: Context
    ) -> BatchGetUsersResponse:
        """Return the profiles that there are, unless the caller's session has ended."""
        if context.caller is not None:
            await self.users.of_caller(context)
        users = await self.users.by_ids(request.ids)
        return BatchGetUsersResponse(profiles=await self.profiles.shown(users, context))


def _changes(request: UpdateMeRequest, user: User) -> dict[str, Any]:
    """Return the columns that get another value."""
    paths = set(request.update_mask.paths)
    if not paths <= _CHANGEABLE:
        message = f"Name what to change: {', '.join(sorted(_CHANGEABLE))}."
        raise invalid_field("UPDATE_MASK_INVALID", "updateMask", "field_mask.in", message)
    wanted = {path: getattr(request, path) or "" for path in paths}
    for name in ("username", "email"):
        if name in wanted and not wanted[name]:
            message = f"An account needs its {name}."
            raise invalid_field(f"{name.upper()}_MISSING", name, "required", message)
    return {path: value for path, value in wanted.items() if value != getattr(user, path)}


def _with_words(changes: dict[str, Any], user: User) -> dict[str, Any]:
    """Add what changes with every change."""
    names = (changes.get(name, getattr(user, name)) for name in ("username", "display_name"))
    return changes | {
        "search": search_text(*names),
        "updated_at": datetime.now(UTC),
        "version": user.version + 1,
    }
