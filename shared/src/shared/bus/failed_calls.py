"""Logs failed calls, and encodes the replies with their errors."""

import logging
from collections import Counter
from typing import Final

from postbus import reasons
from shared.bus.declared_reasons import DeclaredReasons
from shared.bus.reply import error_reply, with_metadata
from shared.bus.served_method import ServedMethod
from shared.context import Context
from shared.errors import Outcome, ServiceError, internal
from shared.limited_log import LimitedLog
from shared.security_log import SecurityLog
from shared.trace import trace_id

__all__ = ["FailedCalls"]

_FAILURE_LINES: Final = 10
"""Lines about unexpected exceptions of one method in ten seconds."""


class FailedCalls:
    """Logs and encodes the errors of calls. `incidents` counts undeclared reasons."""

    def __init__(self, security_log: SecurityLog, incidents: Counter[str]) -> None:
        self._security_log = security_log
        self._declared = DeclaredReasons(incidents)
        self._log = LimitedLog(_FAILURE_LINES)

    def reply(
        self, served: ServedMethod, error: Exception, context: Context | None, traceparent: str
    ) -> tuple[int, bytes]:
        """Return the code and the encoded Reply of a failed call.

        `context` is None if the request was refused before it got one. If the handler has made a
        call with side effects, the outcome is UNKNOWN: a rollback does not undo that call.
        """
        trace = trace_id(traceparent)
        if not isinstance(error, ServiceError):
            self._log.write(
                logging.ERROR,
                "request.failed",
                key=served.name,
                method=served.name,
                trace_id=trace,
                exc_info=error,
            )
            error = internal()
        elif context is not None and context.has_changed:
            error.outcome = Outcome.try_value(Outcome.UNKNOWN)
        self._declared.check(served.method, error)
        if context is None and error.reason == reasons.MALFORMED_MESSAGE:
            self._security_log.refuse_message(served.name, error.reason)
        self._security_log.record_refusal(error, context, method=served.name, trace_id=trace)
        reply = error_reply(error, trace)
        if context is not None:
            reply = with_metadata(reply, context.reply_headers, context.reply_trailers)
        return error.code, reply
