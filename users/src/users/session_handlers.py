"""Handlers for the rpcs of AuthService that list and end sessions."""

from dataclasses import dataclass

from betterproto.lib.google.protobuf import Empty

from postbus import reasons
from postbus.users.v1 import (
    AuthServiceBase,
    ListSessionsRequest,
    ListSessionsResponse,
    LogOutEverywhereRequest,
    LogOutRequest,
    RevokeSessionRequest,
)
from postbus.users.v1 import Session as SessionMessage
from shared.bus import MessagePattern
from shared.context import Context
from shared.data.pages import Pages, Position
from shared.errors import ServiceError
from shared.security_log import SecurityEvent, SecurityLog
from users.account_repository import AccountRepository
from users.models import Session
from users.revocations import publish_revocations
from users.session_repository import SessionRepository

__all__ = ["SessionHandlers", "session_position", "to_session"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHandlers:
    """Lists and ends sessions of the caller."""

    accounts: AccountRepository
    sessions: SessionRepository
    pages: Pages
    log: SecurityLog

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
        await self.accounts.get_caller(context)
        await self._end(context.user_id, context)
        return Empty()

    @MessagePattern(AuthServiceBase.list_sessions)
    async def list_sessions(
        self, request: ListSessionsRequest, context: Context
    ) -> ListSessionsResponse:
        """Return a page of the caller's open sessions."""
        user = await self.accounts.get_caller(context)
        page = self.pages.of(request)
        found = await self.sessions.list_open(user.id, page)
        sessions, token = page.cut(found, session_position)
        current = context.require_caller().session_id
        return ListSessionsResponse(
            sessions=[to_session(session, current) for session in sessions],
            next_page_token=token,
            total=await page.total(self.sessions.count_open, user.id),
        )

    @MessagePattern(AuthServiceBase.revoke_session)
    async def revoke_session(self, request: RevokeSessionRequest, context: Context) -> Empty:
        """End one session of the caller; NOT_FOUND with SESSION_NOT_FOUND if there is none."""
        user = await self.accounts.get_caller(context)
        if not await self._end(user.id, context, only=request.id.lower()):
            raise ServiceError(reasons.SESSION_NOT_FOUND, "There is no such session.")
        return Empty()

    async def _end(self, user_id: str, context: Context, *, only: str | None = None) -> list[str]:
        """End all sessions, or `only` one, and publish their revocation. Return their ids."""
        ended = await self.sessions.delete(user_id, only=only)
        await publish_revocations(user_id, ended)
        if ended:
            self.log.write(SecurityEvent.SESSION_ENDED, context, ended_sessions=len(ended))
        return ended


def session_position(session: Session) -> Position:
    """Return the sort key of a session: ids increase with time."""
    return (session.id,)


def to_session(session: Session, current: str) -> SessionMessage:
    """Return the message of a session; `current` is the id of the caller's session."""
    return SessionMessage(
        id=session.id,
        device=session.device,
        created_at=session.created_at,
        refreshed_at=session.refreshed_at,
        expires_at=session.expires_at,
        current=session.id == current,
    )
