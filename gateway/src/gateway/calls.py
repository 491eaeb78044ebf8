"""Methods that clients may call, and the authorization of callers, for REST and WebSocket."""

from postbus.registry import METHODS, Access, Method
from shared.errors import Code, ServiceError
from shared.identity import Caller, token_missing
from shared.runtime.session_verifier import SessionVerifier

__all__ = ["MAX_TIMEOUT", "authorize", "public_method"]

MAX_TIMEOUT = 30.0
"""Longest budget that a client may ask for, in seconds."""


def public_method(name: str) -> Method:
    """Return a method that outsiders may call; UNIMPLEMENTED if there is none of this name."""
    method = METHODS.get(name)
    if method is None or method.access is Access.INTERNAL:
        raise ServiceError(Code.UNIMPLEMENTED, "UNKNOWN_METHOD", "There is no such method.")
    return method


def authorize(method: Method, access_token: str, verifier: SessionVerifier) -> Caller | None:
    """Return the caller, None if there is no token; UNAUTHENTICATED if the method is not for it.

    A token that is not valid is never ignored.
    """
    if access_token:
        return verifier.verify(access_token, ended=method.ends_session)
    if method.access is not Access.PUBLIC:
        raise token_missing()
    return None
