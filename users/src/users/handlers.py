"""What the worker `users` answers: one method per rpc of proto/postbus/users/v1/users.proto."""

from datetime import UTC, datetime

from uuid_utils.compat import uuid7

from postbus.users.v1 import (
    AuthServiceBase,
    GetMeRequest,
    GetMeResponse,
    GetUserRequest,
    GetUserResponse,
    LogInRequest,
    LogInResponse,
    Profile,
    SignUpRequest,
    SignUpResponse,
    UserRegistered,
    UsersServiceBase,
)
from postbus.users.v1 import User as UserMessage
from shared.context import Context
from shared.errors import Code, ServiceError
from shared.messagebus import MessagePattern, publish
from users.models import User
from users.passwords import Passwords
from users.repository import UserRepository
from users.tokens import TokenSigner

__all__ = ["AuthHandlers", "UserHandlers"]


class AuthHandlers:
    """Accounts and access."""

    def __init__(self, users: UserRepository, passwords: Passwords, tokens: TokenSigner) -> None:
        self._users = users
        self._passwords = passwords
        self._tokens = tokens

    @MessagePattern(AuthServiceBase.sign_up)
    async def sign_up(self, request: SignUpRequest, _context: Context) -> SignUpResponse:
        """Store the account, then tell everyone."""
        user = User(
            id=str(uuid7()),
            username=request.username,
            email=request.email,
            password_hash=await self._passwords.hash(request.password),
            created_at=datetime.now(UTC),
        )
        await self._users.add(user)
        await publish(
            UserRegistered(user_id=user.id, username=user.username, created_at=user.created_at)
        )
        return SignUpResponse(user=_to_message(user))

    @MessagePattern(AuthServiceBase.log_in)
    async def log_in(self, request: LogInRequest, _context: Context) -> LogInResponse:
        """Answer alike, and as slowly, for a wrong password and an unknown account."""
        user = await self._users.by_login(request.login)
        fits = await self._passwords.verify(user.password_hash if user else None, request.password)
        if user is None or not fits:
            raise ServiceError(
                Code.UNAUTHENTICATED, "WRONG_CREDENTIALS", "Unknown account or wrong password."
            )
        token, expires_at = self._tokens.sign(user.id)
        return LogInResponse(access_token=token, expires_at=expires_at)


class UserHandlers:
    """The people who use the system."""

    def __init__(self, users: UserRepository) -> None:
        self._users = users

    @MessagePattern(UsersServiceBase.get_me)
    async def get_me(self, _request: GetMeRequest, context: Context) -> GetMeResponse:
        """Return the caller's account."""
        user = await self._users.get(context.user_id)
        if user is None:
            raise ServiceError(Code.NOT_FOUND, "USER_NOT_FOUND", "The account does not exist.")
        return GetMeResponse(user=_to_message(user))

    @MessagePattern(UsersServiceBase.get_user)
    async def get_user(self, request: GetUserRequest, _context: Context) -> GetUserResponse:
        """Return what everyone may see."""
        user = await self._users.by_username(request.username)
        if user is None:
            raise ServiceError(Code.NOT_FOUND, "USER_NOT_FOUND", "There is no such user.")
        profile = Profile(id=user.id, username=user.username, created_at=user.created_at)
        return GetUserResponse(profile=profile)


def _to_message(user: User) -> UserMessage:
    return UserMessage(
        id=user.id, username=user.username, email=user.email, created_at=user.created_at
    )
