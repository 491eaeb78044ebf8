"""Access tokens: who the caller is, checked at the gateway and again in every worker."""

import json
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime

import jwt

from shared.errors import Code, ServiceError

__all__ = [
    "ACCESS_TOKEN_SECONDS",
    "ALGORITHM",
    "AUDIENCE",
    "ISSUER",
    "Caller",
    "TokenVerifier",
    "session_revoked",
    "token_missing",
]

ALGORITHM = "EdDSA"
ISSUER = "postbus.users"
AUDIENCE = "postbus"
ACCESS_TOKEN_SECONDS = 600
"""How long an access token lives."""
_REMEMBERED = 4096
"""Tokens that are not verified again: a signature costs more than all else of a call."""


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
            claims = jwt.decode(
                token,
                self._keys[jwt.get_unverified_header(token)["kid"]],
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                options={"require": ["exp", "iat", "sub", "sid", "jti"]},
            )
        except jwt.ExpiredSignatureError:
            raise _unauthenticated("TOKEN_EXPIRED", "The access token has expired.") from None
        except (jwt.InvalidTokenError, KeyError, TypeError):
            raise _unauthenticated("TOKEN_INVALID", "The access token is not valid.") from None
        return Caller(
            user_id=claims["sub"],
            session_id=claims["sid"],
            expires_at=datetime.fromtimestamp(claims["exp"], UTC),
        )


def token_missing() -> ServiceError:
    """The error of a caller without an access token."""
    return _unauthenticated("TOKEN_MISSING", "Log in first.")


def session_revoked() -> ServiceError:
    """The error of a caller whose session has ended."""
    return _unauthenticated("SESSION_REVOKED", "The session has ended: log in again.")


def _unauthenticated(reason: str, message: str) -> ServiceError:
    return ServiceError(Code.UNAUTHENTICATED, reason, message)
