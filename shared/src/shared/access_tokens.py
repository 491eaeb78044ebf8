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

from postbus import reasons
from shared.errors import ServiceError

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
"""Header `typ` of access tokens (RFC 9068). Other tokens of the same key are refused."""
ACCESS_TOKEN_SECONDS: Final = 600
"""Lifetime of an access token."""
LEEWAY_SECONDS: Final = 30
"""How far the clock of the signer and that of a verifier may differ (RFC 7519, section 4.1.4): for
so long after `exp`, requests are accepted and WebSockets stay open."""
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
    """By the clock of the signer; see LEEWAY_SECONDS."""

    @property
    def remaining(self) -> float:
        """Seconds for which the token is still accepted."""
        return self.expires_at.timestamp() + LEEWAY_SECONDS - time.time()


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
        if caller is not None and caller.remaining > 0:
            return caller
        caller = self._verified[token] = self._verify(token)
        if len(self._verified) > _CACHED:
            self._verified.popitem(last=False)
        return caller

    def _verify(self, token: str) -> Caller:
        try:
            return _caller(self._claims(token))
        except jwt.ExpiredSignatureError:
            raise ServiceError(reasons.TOKEN_EXPIRED, "The access token has expired.") from None
        except jwt.ImmatureSignatureError:
            self._log_clock_skew(token)
        except _MALFORMED:
            pass
        raise ServiceError(reasons.TOKEN_INVALID, "The access token is not valid.")

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

    def _log_clock_skew(self, token: str) -> None:
        """Log that the clock of `users` is ahead; the signature of the token is valid."""
        now = time.monotonic()
        if now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = now
            claims = jwt.decode(token, options={"verify_signature": False})
            begin = max(claims["iat"], claims.get("nbf", 0))
            _log.warning("clock.skew", process="users", seconds=round(begin - time.time(), 1))


def _caller(claims: dict[str, Any]) -> Caller:
    """Return the caller of a token's claims; InvalidTokenError if they have other types."""
    user_id, session_id, expires_at = claims["sub"], claims["sid"], claims["exp"]
    ids = all(isinstance(id_, str) and _ID.fullmatch(id_) for id_ in (user_id, session_id))
    if not ids or isinstance(expires_at, bool) or not isinstance(expires_at, int | float):
        raise jwt.InvalidTokenError("claims of other types")
    return Caller(
        user_id=user_id,
        session_id=session_id,
        expires_at=datetime.fromtimestamp(expires_at, UTC),
    )


def token_missing() -> ServiceError:
    """Return UNAUTHENTICATED, TOKEN_MISSING."""
    return ServiceError(reasons.TOKEN_MISSING, "An access token is required: log in.")


def session_revoked() -> ServiceError:
    """Return UNAUTHENTICATED, SESSION_REVOKED."""
    return ServiceError(reasons.SESSION_REVOKED, "The session has ended: log in again.")
