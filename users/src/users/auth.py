"""Accounts and access: one method per rpc of AuthService in proto/postbus/users/v1/auth.proto."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from betterproto.lib.google.protobuf import Empty
from uuid_utils.compat import uuid7

from postbus.users.v1 import (
    AuthServiceBase,
    ChangePasswordRequest,
    GetSigningKeysRequest,
    GetSigningKeysResponse,
    ListSessionsRequest,
    ListSessionsResponse,
    LogInRequest,
    LogInResponse,
    LogOutEverywhereRequest,
    LogOutRequest,
    RefreshSessionRequest,
    RefreshSessionResponse,
    RevokeSessionRequest,
    SessionsRevoked,
    SigningKey,
    SignUpRequest,
    SignUpResponse,
    UserRegistered,
)
from postbus.users.v1 import Session as SessionMessage
from shared.context import Context
from shared.errors import Code, ServiceError
from shared.messagebus import MessagePattern, publish
from shared.pages import Pages
from shared.work import Operation, Store, outside_work, perform_apart
from users.messages import to_user
from users.models import Session, User, search_text
from users.passwords import Passwords
from users.repository import UserRepository
from users.sessions import RefreshToken, SessionRepository
from users.throttle import LoginThrottle
from users.tokens import TokenSigner

__all__ = ["AuthHandlers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthHandlers:
    """Accounts and access. Passwords are hashed outside of transactions: it takes long."""

    users: UserRepository
    sessions: SessionRepository
    passwords: Passwords
    throttle: LoginThrottle
    tokens: TokenSigner
    verification_keys: str
    pages: Pages
    store: Store

    @MessagePattern(AuthServiceBase.sign_up)
    async def sign_up(self, request: SignUpRequest, _context: Context) -> SignUpResponse:
        """Store the account, then tell everyone."""
        user = _new_user(request, await self.passwords.hash(request.password))
        await self.users.add(user)
        await publish(
            UserRegistered(user_id=user.id, username=user.username, created_at=user.created_at)
        )
        return SignUpResponse(user=to_user(user))

    @MessagePattern(AuthServiceBase.log_in)
    async def log_in(self, request: LogInRequest, _context: Context) -> LogInResponse:
        """Answer alike, and as slowly, for a wrong password and an unknown account."""
        with outside_work():
            user = await self.users.by_login(request.login)
        fits = await self._fits(user, request.password, request.login)
        token = RefreshToken.new()
        if user is None or not fits or not await self.sessions.open(user, request.device, token):
            raise ServiceError(
                Code.UNAUTHENTICATED, "WRONG_CREDENTIALS", "Unknown account or wrong password."
            )
        await _tell(user.id, await self.sessions.end_surplus(user.id))
        return LogInResponse(**self._tokens(user.id, token))

    @MessagePattern(AuthServiceBase.refresh_session)
    async def refresh_session(
        self, request: RefreshSessionRequest, context: Context
    ) -> RefreshSessionResponse:
        """Exchange a token for the next; one that was exchanged before ends its session."""
        old = RefreshToken.read(request.refresh_token)
        session = await self.sessions.of_token(old) if old else None
        if old is None or session is None:
            raise ServiceError(
                Code.UNAUTHENTICATED, "REFRESH_TOKEN_INVALID", "The session has ended: log in."
            )
        if session.secret_hash != old.secret_hash:
            raise await self._reused(session, context)
        new = old.next()
        if not await self.sessions.rotate(old, new):
            raise _refreshed_meanwhile()
        return RefreshSessionResponse(**self._tokens(session.user_id, new))

    @MessagePattern(AuthServiceBase.log_out)
    async def log_out(self, _request: LogOutRequest, context: Context) -> Empty:
        """End the session of the caller's token."""
        await self._end(context.user_id, only=context.require_caller().session_id)
        return Empty()

    @MessagePattern(AuthServiceBase.log_out_everywhere)
    async def log_out_everywhere(
        self, _request: LogOutEverywhereRequest, context: Context
    ) -> Empty:
        """End all sessions of the caller."""
        await self.users.of_caller(context)
        await self._end(context.user_id)
        return Empty()

    @MessagePattern(AuthServiceBase.list_sessions)
    async def list_sessions(
        self, request: ListSessionsRequest, context: Context
    ) -> ListSessionsResponse:
        """Return a page of the caller's open sessions."""
        user = await self.users.of_caller(context)
        page = self.pages.of(request)
        found = await self.sessions.of_user(user.id, page)
        sessions, token = page.cut(found, lambda session: (session.id,))
        current = context.require_caller().session_id
        return ListSessionsResponse(
            sessions=[_to_message(session, current) for session in sessions],
            next_page_token=token,
            total=await self.sessions.count(user.id) if request.include_total else None,
        )

    @MessagePattern(AuthServiceBase.revoke_session)
    async def revoke_session(self, request: RevokeSessionRequest, context: Context) -> Empty:
        """End a session, if it is the caller's."""
        user = await self.users.of_caller(context)
        if not await self._end(user.id, only=request.id.lower()):
            raise ServiceError(Code.NOT_FOUND, "SESSION_NOT_FOUND", "There is no such session.")
        return Empty()

    @MessagePattern(AuthServiceBase.change_password)
    async def change_password(self, request: ChangePasswordRequest, context: Context) -> Empty:
        """Store the new password and end the other sessions."""
        with outside_work():
            known = await self.users.of_caller(context)
        fits = await self._fits(known, request.current_password, f"password of {known.id}")
        password_hash = await self.passwords.hash(request.new_password)
        user = await self.users.of_caller(context, lock=True)
        if not fits or user.password_hash != known.password_hash:
            raise ServiceError(
                Code.PERMISSION_DENIED, "WRONG_PASSWORD", "The current password is another one."
            )
        await self.users.change(user, {"password_hash": password_hash})
        await self._end(user.id, but=context.require_caller().session_id)
        return Empty()

    @MessagePattern(AuthServiceBase.get_signing_keys)
    async def get_signing_keys(
        self, _request: GetSigningKeysRequest, _context: Context
    ) -> GetSigningKeysResponse:
        """Return the public keys that everyone verifies with."""
        keys = json.loads(self.verification_keys)["keys"]
        names = ("kty", "crv", "x", "kid", "alg", "use")
        return GetSigningKeysResponse(
            keys=[SigningKey(**{name: key.get(name, "") for name in names}) for key in keys]
        )

    async def _fits(self, user: User | None, password: str, name: str) -> bool:
        """Verify a password; RESOURCE_EXHAUSTED after too many failures under this name."""
        await self.throttle.begin(name)
        fits = await self.passwords.verify(user.password_hash if user else None, password)
        if fits:
            await self.throttle.succeeded(name)
        return fits

    def _tokens(self, user_id: str, token: RefreshToken) -> dict[str, Any]:
        """The fields of LogInResponse and RefreshSessionResponse."""
        access_token, expires_at = self.tokens.sign(user_id, token.session_id)
        return {
            "access_token": access_token,
            "expires_at": expires_at,
            "refresh_token": str(token),
            "refresh_expires_at": self.sessions.expiry(),
            "session_id": token.session_id,
        }

    async def _reused(self, session: Session, context: Context) -> ServiceError:
        """Tell what a token that is not the current one means: at worst, that it was stolen."""
        if context.sent_at <= session.refreshed_at.timestamp():
            return _refreshed_meanwhile()

        async def end() -> bytes:
            await self._end(session.user_id, only=session.id)
            return b""

        await perform_apart(self.store, Operation(key=Operation.name("reused", session.id)), end)
        return ServiceError(
            Code.UNAUTHENTICATED,
            "REFRESH_TOKEN_REUSED",
            "The token has been used before, so its session has ended: log in.",
        )

    async def _end(
        self, user_id: str, *, only: str | None = None, but: str | None = None
    ) -> list[str]:
        """End sessions and tell the gateways; return the ids of the sessions."""
        ended = await self.sessions.end(user_id, only=only, but=but)
        await _tell(user_id, ended)
        return ended


async def _tell(user_id: str, ended: list[str]) -> None:
    """Tell the gateways of sessions that have ended."""
    if ended:
        await publish(SessionsRevoked(user_id=user_id, session_ids=ended))


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


def _to_message(session: Session, current: str) -> SessionMessage:
    return SessionMessage(
        id=session.id,
        device=session.device,
        created_at=session.created_at,
        refreshed_at=session.refreshed_at,
        expires_at=session.expires_at,
        current=session.id == current,
    )


def _refreshed_meanwhile() -> ServiceError:
    return ServiceError(
        Code.ABORTED, "REFRESHED_MEANWHILE", "Another call has got the new tokens: use those."
    )
