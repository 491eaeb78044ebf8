"""The log of security events: at most ten lines per second of each, and a count of all.

docs/operations.md lists the events. A line has ids of users and sessions, the client's address and
the trace id; it never has a password, a token, or a name that was tried, which may be a password.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from postbus import reasons
from shared.context import Context
from shared.errors import Code, ServiceError, shown_name
from shared.limited_log import LimitedLog
from shared.trace import trace_id

__all__ = ["SecurityEvent", "SecurityLog"]

_LINES: Final = 100
"""Lines of one event in ten seconds."""


class SecurityEvent(StrEnum):
    """The events. Their names are stable: alerts of operators refer to them."""

    LOG_IN_SUCCEEDED = "security.log_in_succeeded"
    LOG_IN_FAILED = "security.log_in_failed"
    THROTTLED = "security.throttled"
    REFRESH_REUSED = "security.refresh_reused"
    TOKEN_REFUSED = "security.token_refused"  # noqa: S105  # no password
    FORBIDDEN = "security.forbidden"
    PASSWORD_CHANGED = "security.password_changed"  # noqa: S105  # no password
    EMAIL_CHANGED = "security.email_changed"
    SESSION_ENDED = "security.session_ended"
    ACCOUNT_DELETED = "security.account_deleted"
    BUS_MESSAGE_REFUSED = "security.bus_message_refused"
    SENDER_REFUSED = "security.sender_refused"


_EVENT_OF_REASON: Final = {
    reasons.TOKEN_INVALID: SecurityEvent.TOKEN_REFUSED,
    reasons.SESSION_REVOKED: SecurityEvent.TOKEN_REFUSED,
    reasons.RATE_LIMITED: SecurityEvent.THROTTLED,
}
"""TOKEN_EXPIRED is not an event: every client that is not used for ten minutes gets it."""


class SecurityLog:
    """Writes and counts the security events of a process. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        """Number of events by name since the start, with those that were not written."""
        self._log = LimitedLog(_LINES, clock)

    def write(self, event: SecurityEvent, context: Context | None = None, **fields: Any) -> None:
        """Count an event and write its line. `fields` take precedence over `context`.

        The next line has the number of those that were omitted. Empty fields are left out.
        """
        self.counts[event] += 1
        if context is not None:
            fields = _fields_of(context) | fields
        given = {name: value for name, value in fields.items() if value != ""}
        self._log.write(logging.INFO, event.value, **given)

    def refuse_sender(self, kind: str, name: str, sender: str) -> None:
        """Write that a message of the bus was refused, because its sender may not send it.

        `kind` is event, call, reply or control, `name` that of the event or method, `sender` the
        broker account.
        """
        name, sender = shown_name(name), shown_name(sender)
        self.write(SecurityEvent.SENDER_REFUSED, kind=kind, name=name, sender=sender)

    def refuse_message(self, name: str, reason: str) -> None:
        """Write that a malformed message of the bus was refused; `name` is that of its method or
        event, or "reply".
        """
        self.write(SecurityEvent.BUS_MESSAGE_REFUSED, name=shown_name(name), reason=reason)

    def record_refusal(
        self, error: ServiceError, context: Context | None = None, **fields: Any
    ) -> None:
        """Write the event of an error of this process, if it is one.

        The error in a reply has a trace id: the process that raised it has written the event.
        """
        event = _EVENT_OF_REASON.get(error.reason)
        if event is None and error.code is Code.PERMISSION_DENIED:
            event = SecurityEvent.FORBIDDEN
        if event is not None and not error.trace_id:
            self.write(event, context, reason=error.reason, **fields)


def _fields_of(context: Context) -> dict[str, str]:
    caller = context.caller
    return {
        "method": context.name,
        "user_id": caller.user_id if caller else "",
        "session_id": caller.session_id if caller else "",
        "address": context.client_address,
        "trace_id": trace_id(context.traceparent),
    }
