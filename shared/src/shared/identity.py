"""Access tokens: who the caller is, checked at the gateway and again in every worker."""

import json
import math
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import jwt
import structlog

from shared.errors import Code, ServiceError

__all__ = [
    "ACCESS_TOKEN_SECONDS",
    "ALGORITHM",
    "AUDIENCE",
    "ISSUER",
    "LEEWAY_SECONDS",
    "TOKEN_TYPE",
    "Caller",
    "TokenVerifier",
    "session_revoked",
    "token_missing",
]

_log = structlog.get_logger()

ALGORITHM: Final = "EdDSA"
ISSUER: Final = "postbus.users"
AUDIENCE: Final = "postbus"
TOKEN_TYPE: Final = "at+jwt"  # noqa: S105  # no password
"""Header `typ` of access tokens (RFC 9068): no other token of the same key passes for one."""
ACCESS_TOKEN_SECONDS: Final = 600
"""How long an access token lives."""
LEEWAY_SECONDS: Final = 30
"""How far ahead the signer's clock may be (`iat`, `nbf`). `exp` has no leeway: requests and sockets
end together, at the moment that the client was told."""
_REMEMBERED: Final = 4096
"""Tokens that are not verified again: a signature costs more than all else of a call."""
_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
"""Ids are UUIDs; whatever else has only these characters does no harm anywhere."""
_TYPES: Final = (TOKEN_TYPE, f"application/{TOKEN_TYPE}")
_MALFORMED: Final = (
    jwt.InvalidTokenError,
    ArithmeticError,  # a time that is infinite or beyond all calendars
    LookupError,  # no `kid`, or an unknown one
    TypeError,
    ValueError,  # a year beyond 9999, characters that UTF-8 does not have
)
_SECONDS_BETWEEN_WARNINGS: Final = 60.0
"""Between two log lines about clocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A user with a valid access token."""

    user_id: str
    session_id: str
    expires_at: datetime


class TokenVerifier:
    """Verifies access tokens (JSON Web Tokens, EdDSA) with public keys.

    `key_set` is a JSON Web Key Set; a token names its key by `kid`.
    jwt.PyJWKSetError if it has no key.
    """

    def __init__(self, key_set: str) -> None:
        keys = jwt.PyJWKSet.from_dict(json.loads(key_set)).keys
        self._keys = {key.key_id: key for key in keys}
        self._verified: OrderedDict[str, Caller] = OrderedDict()
        self._warned_at = -math.inf

    def verify(self, token: str) -> Caller:
        """Return the caller; UNAUTHENTICATED with TOKEN_EXPIRED or TOKEN_INVALID otherwise."""
        caller = self._verified.get(token)
        if caller is not None and caller.expires_at.timestamp() > time.time():
            return caller
        caller = self._verified[token] = self._verify(token)
        if len(self._verified) > _REMEMBERED:
            self._verified.popitem(last=False)
        return caller

    def _verify(self, token: str) -> Caller:
        try:
            return _caller(self._claims(token))
        except jwt.ExpiredSignatureError:
            raise _unauthenticated("TOKEN_EXPIRED", "The access token has expired.") from None
        except jwt.ImmatureSignatureError:
            self._warn_of_clocks()
        except _MALFORMED:
            pass
        raise _unauthenticated("TOKEN_INVALID", "The access token is not valid.")

    def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        if str(header.get("typ")).lower() not in _TYPES:
            raise jwt.InvalidTokenError("not an access token")
        return jwt.decode(
            token,
            self._keys[header["kid"]],
            algorithms=[ALGORITHM],
            issuer=ISSUER,
            audience=AUDIENCE,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "sub", "sid", "jti"]},
        )

    def _warn_of_clocks(self) -> None:
        """Log that clocks differ: the token has the right signature, so one of ours is wrong."""
        now = time.monotonic()
        if now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = now
            _log.warning("token.clock_skew", leeway_seconds=LEEWAY_SECONDS)


def _caller(claims: dict[str, Any]) -> Caller:
    """Return the caller that the claims name; InvalidTokenError if they are not of our form."""
    user_id, session_id, expires_at = claims["sub"], claims["sid"], claims["exp"]
    ids = all(isinstance(id_, str) and _ID.fullmatch(id_) for id_ in (user_id, session_id))
    if not ids or isinstance(expires_at, bool) or not isinstance(expires_at, int | float):
        raise jwt.InvalidTokenError("claims of another form")
    if expires_at <= time.time():  # the leeway is not for it
        raise jwt.ExpiredSignatureError
    return Caller(
        user_id=user_id,
        session_id=session_id,
        expires_at=datetime.fromtimestamp(expires_at, UTC),
    )


def token_missing() -> ServiceError:
    """The error of a caller without an access token."""
    return _unauthenticated("TOKEN_MISSING", "Log in first.")


def session_revoked() -> ServiceError:
    """The error of a caller whose session has ended."""
    return _unauthenticated("SESSION_REVOKED", "The session has ended: log in again.")


def _unauthenticated(reason: str, message: str) -> ServiceError:
    return ServiceError(Code.UNAUTHENTICATED, reason, message)
