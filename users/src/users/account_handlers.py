"""Handlers for the rpcs of AuthService and UsersService on the caller's own account."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from betterproto.lib.google.protobuf import Empty
from uuid_utils.compat import uuid7

from postbus import reasons
from postbus.users.v1 import (
    AuthServiceBase,
    ChangePasswordRequest,
    DeleteMeRequest,
    GetMeRequest,
    GetMeResponse,
    SignUpRequest,
    SignUpResponse,
    UpdateMeRequest,
    UpdateMeResponse,
    UserDeleted,
    UserRegistered,
    UsersServiceBase,
)
from shared.bus import MessagePattern, publish
from shared.context import Context
from shared.errors import ServiceError, invalid_field, require_version
from shared.field_masks import require_paths
from shared.outbox.unit_of_work import outside_unit_of_work, set_reply_owner
from shared.security_log import SecurityEvent, SecurityLog
from users.account_messages import to_profile_updated, to_user
from users.account_repository import AccountRepository
from users.credential_rules import require_uncommon, require_unreserved
from users.models import User, search_text
from users.password_check import PasswordCheck
from users.passwords import Purpose
from users.revocations import publish_revocations
from users.session_repository import SessionRepository

__all__ = ["AccountHandlers"]

_CHANGEABLE = {"username", "email", "display_name", "bio", "image_url"}
_IDENTIFYING = {"username", "email"}
"""Columns that identify the account in a log-in; their change needs a recent log-in."""
_REQUIRED = {"username": reasons.USERNAME_MISSING, "email": reasons.EMAIL_MISSING}
"""The reason of the error if a change removes a column."""
_PUBLISHED = {"username", "display_name", "image_url"}
"""Columns whose change is published to other services."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountHandlers:
    """Creates, reads, changes and deletes accounts.

    Hashing is slow, so it runs outside transactions. A call acquires a hash slot before any other
    work, so that a refused call costs nothing.
    """

    accounts: AccountRepository
    sessions: SessionRepository
    passwords: PasswordCheck
    log: SecurityLog

    @MessagePattern(AuthServiceBase.sign_up)
    async def sign_up(self, request: SignUpRequest, _context: Context) -> SignUpResponse:
        """Store a new account and publish UserRegistered.

        A taken username, which is public, costs no hash. A taken email address costs as
        much as a free one: the unique index reports it after the hash.
        """
        require_unreserved(request.username)
        require_uncommon(
            request.password, username=request.username, email=request.email, field="password"
        )
        with self.passwords.acquire_slot(Purpose.SIGN_UP) as slot:
            with outside_unit_of_work():
                free = await self.accounts.find_by_username(request.username) is None
            if not free:  # in the unit of work: a repeated call gets its stored reply instead
                await self.accounts.require_free(request.username)
            user = _new_user(request, await slot.hash(request.password))
        set_reply_owner(user.id)
        await self.accounts.add(user)
        await publish(
            UserRegistered(user_id=user.id, username=user.username, created_at=user.created_at)
        )
        return SignUpResponse(user=to_user(user))

    @MessagePattern(UsersServiceBase.get_me)
    async def get_me(self, _request: GetMeRequest, context: Context) -> GetMeResponse:
        """Return the caller's account."""
        return GetMeResponse(user=to_user(await self.accounts.get_caller(context)))

    @MessagePattern(UsersServiceBase.update_me)
    async def update_me(self, request: UpdateMeRequest, context: Context) -> UpdateMeResponse:
        """Update the fields in the mask that have a different value."""
        user = await self.accounts.get_caller(context, lock=True)
        require_version(user.version, request.expected_version)
        changes = _changes(request, user)
        if _IDENTIFYING & changes.keys():
            await self.sessions.require_recent(context)
        if "username" in changes:
            require_unreserved(changes["username"])
        published = bool(_PUBLISHED & changes.keys())
        if published:
            changes["revision"] = user.revision + 1
        if changes:
            await self.accounts.update(user, _with_derived(changes, user))
        if "email" in changes:
            self.log.write(SecurityEvent.EMAIL_CHANGED, context)
        if published:
            context.raise_revision(user.revision)
            await publish(to_profile_updated(user))
        return UpdateMeResponse(user=to_user(user))

    @MessagePattern(AuthServiceBase.change_password)
    async def change_password(self, request: ChangePasswordRequest, context: Context) -> Empty:
        """Store the new password and end the other sessions of the user."""
        with self.passwords.acquire_slot(Purpose.PASSWORD_CHANGE) as slot:
            with outside_unit_of_work():
                checked = await self.accounts.get_caller(context)
            require_uncommon(
                request.new_password,
                username=checked.username,
                email=checked.email,
                field="newPassword",
            )
            verdict = await self.passwords.verify_current(
                slot, checked, request.current_password, context=context
            )
            password_hash = await slot.hash(request.new_password) if verdict.matches else ""
        user = await self.accounts.get_caller(context, lock=True)
        if not verdict.matches or user.password_version != checked.password_version:
            raise ServiceError(reasons.WRONG_PASSWORD, "The current password is wrong.")
        version = user.password_version + 1
        await self.accounts.update(
            user, {"password_hash": password_hash, "password_version": version}
        )
        ended = await self.sessions.delete(user.id, keep=context.require_caller().session_id)
        await publish_revocations(user.id, ended)
        self.log.write(SecurityEvent.PASSWORD_CHANGED, context, ended_sessions=len(ended))
        return Empty()

    @MessagePattern(UsersServiceBase.delete_me)
    async def delete_me(self, request: DeleteMeRequest, context: Context) -> Empty:
        """Delete the account and its sessions; consumers of UserDeleted delete the rest."""
        user = await self.accounts.get_caller(context, lock=True)
        require_version(user.version, request.expected_version)
        await self.sessions.require_recent(context)
        ended = await self.sessions.delete(user.id)
        await self.accounts.delete(user.id)
        # higher than the revision of every projection: other services then call `users`
        context.raise_revision(user.revision + 1)
        await publish_revocations(user.id, ended)
        await publish(UserDeleted(user_id=user.id))
        self.log.write(SecurityEvent.ACCOUNT_DELETED, context, ended_sessions=len(ended))
        return Empty()


def _new_user(request: SignUpRequest, password_hash: str) -> User:
    now = datetime.now(UTC)
    return User(
        id=str(uuid7()),
        username=request.username,
        email=request.email,
        password_hash=password_hash,
        search=search_text(request.username),
        created_at=now,
        updated_at=now,
    )


def _changes(request: UpdateMeRequest, user: User) -> dict[str, Any]:
    """Return the columns in the mask that change, with their new values."""
    paths = require_paths(request.update_mask, _CHANGEABLE)
    values = {path: getattr(request, path) or "" for path in paths}
    for name, reason in _REQUIRED.items():
        if name in values and not values[name]:
            message = f"The {name} of an account cannot be removed."
            raise invalid_field(reason, name, "required", message)
    return {path: value for path, value in values.items() if value != getattr(user, path)}


def _with_derived(changes: dict[str, Any], user: User) -> dict[str, Any]:
    """Add the derived columns: search text, `updated_at`, `version`."""
    names = (changes.get(name, getattr(user, name)) for name in ("username", "display_name"))
    return changes | {
        "search": search_text(*names),
        "updated_at": datetime.now(UTC),
        "version": user.version + 1,
    }
