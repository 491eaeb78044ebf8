"""The error with which a failed request to an rpc is answered."""

import asyncio
import logging

import structlog
from google.protobuf.message import Message

from gateway.client_addresses import address_of
from gateway.rest_request import RestRequest
from postbus.registry import Method
from shared.bus.envelope import unavailable
from shared.errors import Outcome, ServiceError, internal
from shared.limited_log import LimitedLog
from shared.security_log import SecurityLog
from shared.wire import parse

__all__ = ["failure_of", "parse_response"]

_log = structlog.get_logger()
_limited_log = LimitedLog()


def parse_response(method: Method, payload: bytes) -> Message:
    """Return the response in a reply; INTERNAL with outcome UNKNOWN if it is malformed.

    That is a fault of the worker, and the call may have had an effect.
    """
    try:
        return parse(method.response_name, payload)
    except ServiceError:
        _limited_log.write(logging.WARNING, "reply.malformed", key=method.name, method=method.name)
        raise internal() from None


def failure_of(
    error: BaseException, request: RestRequest, method: Method, security_log: SecurityLog
) -> ServiceError:
    """Return the error to send for an exception; log it if it is unexpected or about security.

    The outcome is NO_EFFECT if the method was not called.
    """
    match error:
        case ServiceError():
            failure = error
            address = address_of(request.scope)
            security_log.record_refusal(
                error, method=method.name, address=address, trace_id=request.trace_id
            )
        case asyncio.CancelledError():  # by the server, after its time to shut down
            failure = unavailable(
                "SERVER_STOPPED", "The gateway is shutting down.", Outcome.UNKNOWN
            )
        case _:
            _log.error(
                "request.failed", method=method.name, trace_id=request.trace_id, exc_info=error
            )
            failure = internal()
    if not request.called:
        failure.outcome = Outcome.try_value(Outcome.NO_EFFECT)
    return failure
