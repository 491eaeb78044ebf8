"""Verification of passwords within the limits of the log-in throttle."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

from postbus import reasons
from postbus.users.v1 import LogInRequest
from shared.context import Context
from shared.errors import ServiceError
from shared.security_log import SecurityEvent, SecurityLog
from users.device_tokens import DeviceTokens
from users.models import User
from users.passwords import HashSlot, Passwords, Purpose, Verdict
from users.throttle import Attempt, LoginThrottle

__all__ = ["PasswordCheck"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordCheck:
    """Verifies passwords, counts the failures and writes them to the security log.

    The methods that verify raise RESOURCE_EXHAUSTED with LOGIN_THROTTLED after too many failures.
    """

    passwords: Passwords
    throttle: LoginThrottle
    devices: DeviceTokens
    log: SecurityLog

    def acquire_slot(self, purpose: Purpose) -> AbstractContextManager[HashSlot]:
        """Acquire a slot in the queue of `purpose`; see Passwords.acquire_slot."""
        return self.passwords.acquire_slot(purpose)

    async def verify_log_in(
        self, slot: HashSlot, user: User | None, *, request: LogInRequest, context: Context
    ) -> Verdict:
        """Verify the password of a log-in; `user` is None for an unknown account.

        An unknown account is counted and takes as long as an existing one.
        """
        device = self.devices.read(user, request.device_token) if user else None
        if user and device:
            attempt = Attempt.of_device(user.id, device)
        else:
            account = f"id {user.id}" if user else f"name {request.login.lower()}"
            attempt = self.throttle.of_unknown_device(account, context.client_address)
        return await self._verify(slot, user, request.password, attempt=attempt, context=context)

    async def verify_current(
        self, slot: HashSlot, user: User, password: str, *, context: Context
    ) -> Verdict:
        """Verify the current password of a logged-in user. Failures do not count for log-ins."""
        attempt = Attempt.of_password_change(user.id)
        return await self._verify(slot, user, password, attempt=attempt, context=context)

    def device_token(self, user: User, presented: str) -> str:
        """Return the `presented` device token if it is valid for the account, else a new one."""
        return self.devices.issue(user, self.devices.read(user, presented))

    async def _verify(
        self,
        slot: HashSlot,
        user: User | None,
        password: str,
        *,
        attempt: Attempt,
        context: Context,
    ) -> Verdict:
        user_id = user.id if user else ""
        try:
            await self.throttle.record_attempt(attempt)
        except ServiceError as error:
            if error.reason == reasons.LOGIN_THROTTLED:
                event = SecurityEvent.THROTTLED
                self.log.write(event, context, user_id=user_id, reason=error.reason)
            raise
        verdict = await slot.verify(user.password_hash if user else None, password)
        if verdict.matches:
            await self.throttle.reset(attempt)
        else:
            self.log.write(SecurityEvent.LOG_IN_FAILED, context, user_id=user_id)
        return verdict
