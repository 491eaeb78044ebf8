"""Handler for the rpc of AuthService that opens sessions."""

from dataclasses import dataclass

from postbus import reasons
from postbus.users.v1 import AuthServiceBase, LogInRequest, LogInResponse
from shared.bus import MessagePattern
from shared.context import Context
from shared.errors import ServiceError
from shared.outbox.unit_of_work import outside_unit_of_work
from shared.security_log import SecurityEvent, SecurityLog
from users.account_repository import AccountRepository
from users.password_check import PasswordCheck
from users.passwords import Purpose
from users.refresh_tokens import RefreshToken
from users.revocations import publish_revocations
from users.session_repository import SessionRepository
from users.token_signer import TokenSigner

__all__ = ["LogInHandlers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogInHandlers:
    """Opens sessions. The password is verified outside of transactions, because it takes long."""

    accounts: AccountRepository
    sessions: SessionRepository
    passwords: PasswordCheck
    tokens: TokenSigner
    log: SecurityLog

    @MessagePattern(AuthServiceBase.log_in)
    async def log_in(self, request: LogInRequest, context: Context) -> LogInResponse:
        """Log in. A wrong password and an unknown account give the same error after the same time.

        The call acquires its hash slot before it reads anything, so that a refused call
        costs nothing.
        """
        with self.passwords.acquire_slot(Purpose.LOG_IN) as slot:
            with outside_unit_of_work():
                user = await self.accounts.find_by_login(request.login)
            verdict = await self.passwords.verify_log_in(
                slot, user, request=request, context=context
            )
        if user and verdict.new_hash:
            await self.accounts.replace_hash(user, verdict.new_hash)
        token = RefreshToken.new()
        opened = user and verdict.matches and await self.sessions.open(user, request.device, token)
        if user is None or not opened:
            raise ServiceError(reasons.WRONG_CREDENTIALS, "Unknown account or wrong password.")
        await publish_revocations(user.id, await self.sessions.delete_surplus(user.id))
        event, session_id = SecurityEvent.LOG_IN_SUCCEEDED, token.session_id
        self.log.write(event, context, user_id=user.id, session_id=session_id)
        return LogInResponse(
            **self.tokens.fields(user.id, token, self.sessions.expiry()),
            device_token=self.passwords.device_token(user, request.device_token),
        )
