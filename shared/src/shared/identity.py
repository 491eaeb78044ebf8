"""Access tokens and callers; the gateway verifies each token, and every worker again."""

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
"""Header `typ` of access tokens (RFC 9068). Other tokens of the same key are refused."""
ACCESS_TOKEN_SECONDS: Final = 600
"""Lifetime of an access token."""
LEEWAY_SECONDS: Final = 30
"""How far the signer's clock may be ahead (`iat`, `nbf`). `exp` has no leeway: from that time on,
requests are refused and WebSockets are closed."""
_CACHED: Final = 4096
"""Cached verification results. Checking a signature costs more than the rest of a call."""
_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
"""Ids are UUIDs. Other ids of these characters are harmless in logs, keys and queries."""
_TYPES: Final = (TOKEN_TYPE, f"application/{TOKEN_TYPE}")
_MALFORMED: Final = (
    jwt.InvalidTokenError,
    ArithmeticError,  # a time that is infinite, or beyond the range of datetime
    LookupError,  # a missing or unknown `kid`
    TypeError,
    ValueError,  # a year beyond 9999, lone surrogates
)
_SECONDS_BETWEEN_WARNINGS: Final = 60.0
"""Shortest time between two log lines about clock skew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A user with a valid access token."""

    user_id: str
    session_id: str
    expires_at: datetime


class TokenVerifier:
    """Verifies access tokens: JSON Web Tokens (RFC 7519) signed with EdDSA.

    `key_set` is a JSON Web Key Set (RFC 7517); a token names its key by `kid`.
    Raises jwt.PyJWKSetError for a set without keys.
    """

    def __init__(self, key_set: str) -> None:
        self.key_set = key_set
        keys = jwt.PyJWKSet.from_dict(json.loads(key_set)).keys
        self._keys = {key.key_id: key for key in keys}
        self._verified: OrderedDict[str, Caller] = OrderedDict()
        self._warned_at = -math.inf

    def verify(self, token: str) -> Caller:
        """Return the caller; UNAUTHENTICATED with reason TOKEN_EXPIRED or TOKEN_INVALID."""
        caller = self._verified.get(token)
        if caller is not None and caller.expires_at.timestamp() > time.time():
            return caller
        caller = self._verified[token] = self._verify(token)
        if len(self._verified) > _CACHED:
            self._verified.popitem(last=False)
        return caller

    def _verify(self, token: str) -> Caller:
        try:
            return _caller(self._claims(token))
        except jwt.ExpiredSignatureError:
            raise _unauthenticated("TOKEN_EXPIRED", "The access token has expired.") from None
        except jwt.ImmatureSignatureError:
            self._log_clock_skew()
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

    def _log_clock_skew(self) -> None:
        """Log that two clocks of the system differ; the signature of the token is valid."""
        now = time.monotonic()
        if now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = now
            _log.warning("token.clock_skew", leeway_seconds=LEEWAY_SECONDS)


def _caller(claims: dict[str, Any]) -> Caller:
    """Return the caller of a token's claims; InvalidTokenError if they have other types."""
    user_id, session_id, expires_at = claims["sub"], claims["sid"], claims["exp"]
    ids = all(isinstance(id_, str) and _ID.fullmatch(id_) for id_ in (user_id, session_id))
    if not ids or isinstance(expires_at, bool) or not isinstance(expires_at, int | float):
        raise jwt.InvalidTokenError("claims of other types")
    if expires_at <= time.time():  # PyJWT applies the leeway to `exp` as well
        raise jwt.ExpiredSignatureError
    return Caller(
        user_id=user_id,
        session_id=session_id,
        expires_at=datetime.fromtimestamp(expires_at, UTC),
    )


def token_missing() -> ServiceError:
    """Return UNAUTHENTICATED, TOKEN_MISSING."""
    return _unauthenticated("TOKEN_MISSING", "An access token is required: log in.")


def session_revoked() -> ServiceError:
    """Return UNAUTHENTICATED, SESSION_REVOKED."""
    return _unauthenticated("SESSION_REVOKED", "The session has ended: log in again.")


def _unauthenticated(reason: str, message: str) -> ServiceError:
    return ServiceError(Code.UNAUTHENTICATED, reason, message)
