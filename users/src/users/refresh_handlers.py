"""Handler for the rpc of AuthService that exchanges refresh tokens."""

import time
from dataclasses import dataclass

from postbus import reasons
from postbus.users.v1 import AuthServiceBase, RefreshSessionRequest, RefreshSessionResponse
from shared.bus import MessagePattern
from shared.context import Context
from shared.errors import Outcome, ServiceError
from shared.outbox.inbox import Operation
from shared.outbox.unit_of_work import (
    Store,
    mark_replayed,
    outside_unit_of_work,
    perform_separately,
)
from shared.security_log import SecurityEvent, SecurityLog
from shared.wire import decode, encode
from users.models import Session
from users.refresh_tokens import RefreshToken
from users.revocations import publish_revocations
from users.sealed_responses import open_response, seal_response
from users.session_repository import PresentedToken, SessionRepository
from users.token_signer import TokenSigner

__all__ = ["RefreshHandlers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshHandlers:
    """Exchanges refresh tokens and detects their reuse."""

    sessions: SessionRepository
    tokens: TokenSigner
    store: Store
    log: SecurityLog

    @MessagePattern(AuthServiceBase.refresh_session)
    async def refresh_session(
        self, request: RefreshSessionRequest, context: Context
    ) -> RefreshSessionResponse:
        """Exchange the current token of a session. The reuse of an older one ends the session.

        A repeated call gets its response from the session, because the inbox stores no secrets.
        """
        began = time.monotonic()
        old = RefreshToken.read(request.refresh_token)
        if old is None:
            raise _invalid()
        lost_race = False
        with outside_unit_of_work():
            presented = await self._find(old, began)
            if presented.current:
                if response := await self._rotate(presented.session, old, context):
                    return response
                presented, lost_race = await self._find(old, began), True
        if response := _stored_response(presented, old, context):
            return response
        if presented.exchanged_during_call or lost_race:
            raise ServiceError(
                reasons.REFRESHED_MEANWHILE,
                "A concurrent call has received the new tokens. Use these.",
            )
        raise await self._handle_reuse(presented.session, context)

    async def _find(self, token: RefreshToken, began: float) -> PresentedToken:
        presented = await self.sessions.find_by_token(token, began)
        if presented is None:
            raise _invalid()
        return presented

    async def _rotate(
        self, session: Session, old: RefreshToken, context: Context
    ) -> RefreshSessionResponse | None:
        """Replace the current token; None if a concurrent call has replaced it."""
        new, expires_at = old.next(), self.sessions.expiry(session.created_at)
        response = RefreshSessionResponse(**self.tokens.fields(session.user_id, new, expires_at))
        sealed = seal_response(encode(response), old, context.operation_id)
        rotated = await self.sessions.rotate(old, new, sealed_response=sealed)
        return response if rotated else None

    async def _handle_reuse(self, session: Session, context: Context) -> ServiceError:
        """End the session of a token that was already exchanged, and return the error.

        The token may have been stolen. The session ends in an operation of its own, because the
        error rolls back the current one.
        """

        async def end() -> bytes:
            ended = await self.sessions.delete(session.user_id, only=session.id)
            await publish_revocations(session.user_id, ended)
            return b""

        await perform_separately(
            self.store, Operation(key=Operation.key_of("reused", session.id)), end
        )
        ids = {"user_id": session.user_id, "session_id": session.id}
        self.log.write(SecurityEvent.REFRESH_REUSED, context, **ids)
        self.log.write(SecurityEvent.SESSION_ENDED, context, **ids, ended_sessions=1)
        return ServiceError(
            reasons.REFRESH_TOKEN_REUSED,
            "The refresh token was used before, so its session has ended. Log in again.",
            outcome=Outcome.UNKNOWN,
        )


def _stored_response(
    presented: PresentedToken, token: RefreshToken, context: Context
) -> RefreshSessionResponse | None:
    """Return the response of the same call if this is its repetition, else None."""
    if presented.sealed_response is None:
        return None
    response = open_response(presented.sealed_response, token, context.operation_id)
    if response is None:
        return None
    mark_replayed()
    return decode(RefreshSessionResponse, response)


def _invalid() -> ServiceError:
    return ServiceError(
        reasons.REFRESH_TOKEN_INVALID,
        "The refresh token is not valid. Log in again.",
    )
