"""Handler for the rpc of AccountExportService."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from typing import Final

from postbus.users.v1 import (
    AccountExportServiceBase,
    ExportAccountRequest,
    ExportAccountResponse,
    FollowedUser,
)
from shared.bus import MessagePattern
from shared.context import Context
from shared.data.pages import read_pages
from users.account_messages import to_user
from users.account_repository import AccountRepository
from users.follow_repository import FollowRepository, ListedUser, sort_key
from users.session_handlers import session_position, to_session
from users.session_repository import SessionRepository

__all__ = ["ExportHandlers"]

_BATCH: Final = 200
"""Rows that one query reads, and so that an export keeps in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportHandlers:
    """Exports the data of the caller that `users` stores."""

    accounts: AccountRepository
    sessions: SessionRepository
    follows: FollowRepository

    @MessagePattern(AccountExportServiceBase.export_account)
    async def export_account(
        self, _request: ExportAccountRequest, context: Context
    ) -> AsyncGenerator[ExportAccountResponse, None]:
        """Yield the account, the open sessions without their hashes, and the followed users."""
        user = await self.accounts.get_caller(context)
        yield ExportAccountResponse(account=to_user(user))
        current = context.require_caller().session_id
        find_sessions = partial(self.sessions.list_open, user.id)
        async for sessions in read_pages(find_sessions, session_position, size=_BATCH):
            for session in sessions:
                yield ExportAccountResponse(session=to_session(session, current))
        find_followed = partial(self.follows.list_following, user.id)
        async for followed in read_pages(find_followed, sort_key, size=_BATCH):
            for each in followed:
                yield ExportAccountResponse(follow=_to_followed(each))


def _to_followed(listed: ListedUser) -> FollowedUser:
    user = listed.user
    return FollowedUser(user_id=user.id, username=user.username, followed_at=listed.followed_at)
