"""Verifies the callers of requests, and validates their messages."""

import logging
import time
from typing import Any, Final, Protocol

import betterproto
from uuid_utils import uuid7

from postbus import reasons
from shared.access_tokens import LEEWAY_SECONDS, Caller, token_missing
from shared.bus.call import budget_of
from shared.bus.served_method import ServedMethod
from shared.context import Context
from shared.errors import ServiceError
from shared.limited_log import LimitedLog
from shared.metadata import read_metadata
from shared.wire import read_valid

__all__ = ["RequestVerification", "Verifier"]

_MAX_BUDGET: Final = 60.0
"""Seconds; a longer budget of the caller is reduced to it."""
_MAX_ID: Final = 255
"""Characters of an operation id or correlation id: events and nested calls repeat them."""
_MAX_ADDRESS: Final = 64
"""Characters of the client's address that are kept: more than an address has."""
_CLOCK_LOG_SECONDS: Final = 60.0
"""Shortest time between two log lines about the clock."""


class Verifier(Protocol):
    """Verifies access tokens and sessions: `SessionVerifier` of `shared.runtime`."""

    def verify(self, token: str, *, ended: bool) -> Caller:
        """Return the caller or raise ServiceError. With `ended`, an ended session is accepted."""


class RequestVerification:
    """Verifies tokens and validates messages, as the gateway has done before.

    Any client of the broker could claim any identity.
    """

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._clock_log = LimitedLog(seconds=_CLOCK_LOG_SECONDS)

    def verify(
        self, served: ServedMethod, request: Any, traceparent: str, service: str
    ) -> tuple[Context, betterproto.Message]:
        """Return the context and the message of a Request that `service` has sent.

        Raises ServiceError: that of the token, SERVICE_NOT_ALLOWED, or INVALID_ARGUMENT.
        """
        if served.callers and service not in served.callers:
            raise _not_a_caller()
        token = request.access_token
        ends_session = served.method.ends_session
        try:
            caller = self._verifier.verify(token, ended=ends_session) if token else None
        except ServiceError:
            self._log_skew(request)
            raise
        if caller is None and served.needs_user:
            raise token_missing()
        operation_id = request.operation_id or str(uuid7())
        correlation_id = request.correlation_id or operation_id
        if len(operation_id) > _MAX_ID or len(correlation_id) > _MAX_ID:
            raise _id_too_long()
        context = Context(
            name=served.name,
            caller=caller,
            calling_service=service,
            access_token=token,
            deadline=time.monotonic() + min(budget_of(request), _MAX_BUDGET),
            operation_id=operation_id,
            correlation_id=correlation_id,
            traceparent=traceparent,
            caller_revision=request.caller_revision,
            client_address=request.client_address[:_MAX_ADDRESS],
        )
        if request.metadata:
            context.received_metadata = read_metadata(request.metadata)
        if request.has_client_timeout:
            context.has_client_timeout = True
        return context, read_valid(served.method.request, request.payload)

    def _log_skew(self, request: Any) -> None:
        """Log that the clock of this worker differs from that of the sender of a refused token.

        The sender, which has accepted the token, can have waited for as long as the budget.
        """
        budget, ahead = budget_of(request), time.time() - request.sent_unix_ms / 1000
        if request.sent_unix_ms and not -LEEWAY_SECONDS <= ahead <= LEEWAY_SECONDS + budget:
            self._clock_log.write(
                logging.WARNING, "clock.skew", process="sender", seconds=round(-ahead, 1)
            )


def _not_a_caller() -> ServiceError:
    text = "The contract does not list this service as a caller of the method."
    return ServiceError(reasons.SERVICE_NOT_ALLOWED, text)


def _id_too_long() -> ServiceError:
    text = f"An operation id or correlation id has at most {_MAX_ID} characters."
    return ServiceError(reasons.MALFORMED_MESSAGE, text)
