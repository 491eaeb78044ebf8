"""Methods that clients may call, and the authorization of callers, for REST and WebSocket."""

from postbus import reasons
from postbus.registry import METHODS, Access, Method
from shared.access_tokens import Caller, token_missing
from shared.errors import ServiceError
from shared.runtime.session_verifier import SessionVerifier

__all__ = ["authorize", "public_method"]


def public_method(name: str) -> Method:
    """Return a method that clients may call; UNIMPLEMENTED, UNKNOWN_METHOD for any other name."""
    method = METHODS.get(name)
    if method is None or method.access is Access.INTERNAL:
        raise ServiceError(reasons.UNKNOWN_METHOD, "There is no such method.")
    return method


def authorize(method: Method, access_token: str, verifier: SessionVerifier) -> Caller | None:
    """Return the caller, None without a token; UNAUTHENTICATED if the method requires a token.

    An invalid token is always UNAUTHENTICATED, even if the method requires none.
    """
    if access_token:
        return verifier.verify(access_token, ended=method.ends_session)
    if method.access is not Access.PUBLIC:
        raise token_missing()
    return None
