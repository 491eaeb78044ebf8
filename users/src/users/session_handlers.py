"""Sessions: the rpcs of AuthService in proto/postbus/users/v1/auth.proto that are about them."""

import time
from dataclasses import dataclass

from betterproto.lib.google.protobuf import Empty

from postbus.users.v1 import (
    AuthServiceBase,
    ListSessionsRequest,
    ListSessionsResponse,
    LogOutEverywhereRequest,
    LogOutRequest,
    RefreshSessionRequest,
    RefreshSessionResponse,
    RevokeSessionRequest,
)
from postbus.users.v1 import Session as SessionMessage
from shared.bus import MessagePattern
from shared.context import Context
from shared.data.pages import Pages
from shared.errors import Code, ServiceError
from shared.outbox.inbox import Operation
from shared.outbox.unit_of_work import (
    Store,
    mark_replayed,
    outside_unit_of_work,
    perform_separately,
)
from shared.wire import decode, encode
from users.models import Session
from users.refresh_answers import open_answer, seal_answer
from users.refresh_tokens import RefreshToken
from users.repository import UserRepository
from users.revocation import publish_revoked
from users.security_log import SecurityLog
from users.sessions import PresentedToken, SessionRepository
from users.tokens import TokenSigner

__all__ = ["SessionHandlers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHandlers:
    """Refreshes, lists and ends sessions."""

    users: UserRepository
    sessions: SessionRepository
    tokens: TokenSigner
    pages: Pages
    store: Store
    log: SecurityLog

    @MessagePattern(AuthServiceBase.refresh_session)
    async def refresh_session(
        self, request: RefreshSessionRequest, context: Context
    ) -> RefreshSessionResponse:
        """Exchange a token for the next; one that was exchanged before ends its session.

        A repetition gets its answer from the session, not from the inbox.
        """
        began = time.monotonic()
        old = RefreshToken.read(request.refresh_token)
        if old is None:
            raise _invalid()
        overtaken = False
        with outside_unit_of_work():
            presented = await self._presented(old, began)
            if presented.current:
                if response := await self._rotate(presented.session, old, context):
                    return response
                presented, overtaken = await self._presented(old, began), True
        if response := _answer(presented, old, context):
            return response
        if presented.meanwhile or overtaken:
            raise ServiceError(
                Code.ABORTED,
                "REFRESHED_MEANWHILE",
                "Another call has got the new tokens: use those.",
            )
        raise await self._reused(presented.session, context)

    @MessagePattern(AuthServiceBase.log_out)
    async def log_out(self, _request: LogOutRequest, context: Context) -> Empty:
        """End the session of the caller's token."""
        await self._end(context.user_id, context, only=context.require_caller().session_id)
        return Empty()

    @MessagePattern(AuthServiceBase.log_out_everywhere)
    async def log_out_everywhere(
        self, _request: LogOutEverywhereRequest, context: Context
    ) -> Empty:
        """End all sessions of the caller."""
        await self.users.of_caller(context)
        await self._end(context.user_id, context)
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
        if not await self._end(user.id, context, only=request.id.lower()):
            raise ServiceError(Code.NOT_FOUND, "SESSION_NOT_FOUND", "There is no such session.")
        return Empty()

    async def _presented(self, token: RefreshToken, began: float) -> PresentedToken:
        presented = await self.sessions.of_token(token, began)
        if presented is None:
            raise _invalid()
        return presented

    async def _rotate(
        self, session: Session, old: RefreshToken, context: Context
    ) -> RefreshSessionResponse | None:
        """Replace the current token; None if another call has done so at the same moment."""
        new, expires_at = old.next(), self.sessions.expiry(session.created_at)
        fields = self.tokens.fields(session.user_id, new, expires_at)
        response = RefreshSessionResponse(**fields)
        answer = seal_answer(encode(response), old, context.operation_id)
        rotated = await self.sessions.rotate(old, new, expires_at=expires_at, answer=answer)
        return response if rotated else None

    async def _reused(self, session: Session, context: Context) -> ServiceError:
        """End the session of a token that was exchanged before: it may have been stolen."""

        async def end() -> bytes:
            await self._end(session.user_id, context, only=session.id)
            return b""

        await perform_separately(
            self.store, Operation(key=Operation.key_of("reused", session.id)), end
        )
        self.log.write("token.reused", context, user_id=session.user_id, session_id=session.id)
        return ServiceError(
            Code.UNAUTHENTICATED,
            "REFRESH_TOKEN_REUSED",
            "The token has been used before, so its session has ended: log in.",
        )

    async def _end(self, user_id: str, context: Context, *, only: str | None = None) -> list[str]:
        """End all sessions or `only` one, and publish it; return the ids of the sessions."""
        ended = await self.sessions.end(user_id, only=only)
        await publish_revoked(user_id, ended)
        self.log.write("sessions.ended", context, user_id=user_id, sessions=len(ended))
        return ended


def _answer(
    presented: PresentedToken, token: RefreshToken, context: Context
) -> RefreshSessionResponse | None:
    """Return the answer that the same call got before, if this is its repetition."""
    if presented.answer is None:
        return None
    answer = open_answer(presented.answer, token, context.operation_id)
    if answer is None:
        return None
    mark_replayed()
    return decode(RefreshSessionResponse, answer)


def _to_message(session: Session, current: str) -> SessionMessage:
    return SessionMessage(
        id=session.id,
        device=session.device,
        created_at=session.created_at,
        refreshed_at=session.refreshed_at,
        expires_at=session.expires_at,
        current=session.id == current,
    )


def _invalid() -> ServiceError:
    return ServiceError(
        Code.UNAUTHENTICATED, "REFRESH_TOKEN_INVALID", "The session has ended: log in."
    )
