"""Accounts and access: the rpcs of AuthService in proto/postbus/users/v1/auth.proto that are about
passwords, and the public keys.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from betterproto.lib.google.protobuf import Empty
from uuid_utils.compat import uuid7

from postbus.users.v1 import (
    AuthServiceBase,
    ChangePasswordRequest,
    GetSigningKeysRequest,
    GetSigningKeysResponse,
    LogInRequest,
    LogInResponse,
    SigningKey,
    SignUpRequest,
    SignUpResponse,
    UserRegistered,
)
from shared.bus import MessagePattern, publish
from shared.context import Context
from shared.errors import Code, ServiceError
from shared.outbox.unit_of_work import outside_unit_of_work
from users.credentials import require_uncommon, require_unreserved
from users.devices import DeviceTokens
from users.messages import to_user
from users.models import User, search_text
from users.passwords import Passwords, Place, Purpose, Verdict
from users.refresh_tokens import RefreshToken
from users.repository import UserRepository
from users.revocation import publish_revoked
from users.security_log import SecurityLog
from users.sessions import SessionRepository
from users.throttle import Attempt, LoginThrottle
from users.tokens import TokenSigner

__all__ = ["AuthHandlers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthHandlers:
    """Accounts and access. Passwords are hashed outside of transactions: it takes long.

    A call takes its place in the queue of the hashes before it does anything else that costs.
    """

    users: UserRepository
    sessions: SessionRepository
    passwords: Passwords
    throttle: LoginThrottle
    devices: DeviceTokens
    tokens: TokenSigner
    verification_keys: str
    log: SecurityLog

    @MessagePattern(AuthServiceBase.sign_up)
    async def sign_up(self, request: SignUpRequest, _context: Context) -> SignUpResponse:
        """Store the account and publish that it is there.

        A taken username, which is public, costs no hash. A taken email address costs as
        much as a free one: it is found when the account is stored, after the hash.
        """
        require_unreserved(request.username)
        require_uncommon(
            request.password, username=request.username, email=request.email, field="password"
        )
        with self.passwords.place(Purpose.SIGN_UP) as place:
            with outside_unit_of_work():
                free = await self.users.by_username(request.username) is None
            if not free:
                await self.users.require_free(request.username)
            user = _new_user(request, await place.hash(request.password))
        await self.users.add(user)
        await publish(
            UserRegistered(user_id=user.id, username=user.username, created_at=user.created_at)
        )
        return SignUpResponse(user=to_user(user))

    @MessagePattern(AuthServiceBase.log_in)
    async def log_in(self, request: LogInRequest, context: Context) -> LogInResponse:
        """Answer alike, and as slowly, for a wrong password and an unknown account."""
        with self.passwords.place(Purpose.LOG_IN) as place:
            with outside_unit_of_work():
                user = await self.users.by_login(request.login)
            device = self.devices.read(user, request.device_token) if user else None
            attempt = self._log_in_attempt(user, device, request, context)
            verdict = await self._verify(place, user, request.password, attempt, context)
        if user and verdict.renewed:
            await self.users.renew_hash(user, verdict.renewed)
        token = RefreshToken.new()
        opened = user and verdict.fits and await self.sessions.open(user, request.device, token)
        if user is None or not opened:
            raise ServiceError(
                Code.UNAUTHENTICATED, "WRONG_CREDENTIALS", "Unknown account or wrong password."
            )
        await publish_revoked(user.id, await self.sessions.end_surplus(user.id))
        self.log.write("login.succeeded", context, user_id=user.id, session_id=token.session_id)
        return LogInResponse(
            **self.tokens.fields(user.id, token, self.sessions.expiry()),
            device_token=self.devices.issue(user, device),
        )

    @MessagePattern(AuthServiceBase.change_password)
    async def change_password(self, request: ChangePasswordRequest, context: Context) -> Empty:
        """Store the new password and end the other sessions."""
        with self.passwords.place(Purpose.PASSWORD_CHANGE) as place:
            with outside_unit_of_work():
                known = await self.users.of_caller(context)
            require_uncommon(
                request.new_password,
                username=known.username,
                email=known.email,
                field="newPassword",
            )
            attempt = Attempt.of_password_change(known.id)
            verdict = await self._verify(place, known, request.current_password, attempt, context)
            password_hash = await place.hash(request.new_password) if verdict.fits else ""
        user = await self.users.of_caller(context, lock=True)
        if not verdict.fits or user.password_version != known.password_version:
            raise ServiceError(
                Code.PERMISSION_DENIED, "WRONG_PASSWORD", "The current password is another one."
            )
        version = user.password_version + 1
        await self.users.change(user, {"password_hash": password_hash, "password_version": version})
        ended = await self.sessions.end(user.id, but=context.require_caller().session_id)
        await publish_revoked(user.id, ended)
        self.log.write("password.changed", context, user_id=user.id, ended_sessions=len(ended))
        return Empty()

    @MessagePattern(AuthServiceBase.get_signing_keys)
    async def get_signing_keys(
        self, _request: GetSigningKeysRequest, _context: Context
    ) -> GetSigningKeysResponse:
        """Return the public keys that verify access tokens."""
        keys = json.loads(self.verification_keys)["keys"]
        names = ("kty", "crv", "x", "kid", "alg", "use")
        return GetSigningKeysResponse(
            keys=[SigningKey(**{name: key.get(name, "") for name in names}) for key in keys]
        )

    def _log_in_attempt(
        self, user: User | None, device: bytes | None, request: LogInRequest, context: Context
    ) -> Attempt:
        """Return the counts that the log-in belongs to. An unknown name counts like an account."""
        if user and device:
            return Attempt.of_device(user.id, device)
        account = f"id {user.id}" if user else f"name {request.login.lower()}"
        return self.throttle.of_stranger(account, context.client_address)

    async def _verify(
        self, place: Place, user: User | None, password: str, attempt: Attempt, context: Context
    ) -> Verdict:
        """Verify a password; RESOURCE_EXHAUSTED with LOGIN_THROTTLED after too many failures."""
        user_id = user.id if user else ""
        try:
            await self.throttle.begin(attempt)
        except ServiceError as error:
            if error.reason == "LOGIN_THROTTLED":
                self.log.write("login.throttled", context, user_id=user_id)
            raise
        verdict = await place.verify(user.password_hash if user else None, password)
        if verdict.fits:
            await self.throttle.succeeded(attempt)
        else:
            self.log.write("login.failed", context, user_id=user_id, method=context.name)
        return verdict


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
