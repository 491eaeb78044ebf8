"""What REST and WebSocket calls have in common on their way to the bus."""

import time

from uuid_utils.compat import uuid7

from postbus.bus.v1 import Request
from postbus.registry import METHODS, Access, Method
from shared.errors import Code, ServiceError
from shared.identity import TokenVerifier, token_missing

__all__ = ["MAX_TIMEOUT", "authorize", "new_request", "public_method"]

MAX_TIMEOUT = 30.0
"""Longest budget that a client may ask for, in seconds."""


def public_method(name: str) -> Method:
    """Return a method that outsiders may call; UNIMPLEMENTED if there is none of this name."""
    method = METHODS.get(name)
    if method is None or method.access is Access.INTERNAL:
        raise ServiceError(Code.UNIMPLEMENTED, "UNKNOWN_METHOD", "There is no such method.")
    return method


def authorize(method: Method, access_token: str, verifier: TokenVerifier) -> None:
    """Refuse callers that the method is not for: UNAUTHENTICATED. A bad token is never ignored."""
    if access_token:
        verifier.verify(access_token)
    elif method.access is not Access.PUBLIC:
        raise token_missing()


def new_request(
    payload: bytes, *, timeout: float, access_token: str, traceparent: str, operation_id: str = ""
) -> Request:
    """Return the envelope of a call; `timeout` in seconds."""
    return Request(
        payload=payload,
        deadline_unix_ms=int((time.time() + timeout) * 1000),
        access_token=access_token,
        operation_id=operation_id or str(uuid7()),
        traceparent=traceparent,
    )
