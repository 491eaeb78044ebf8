"""Access tokens: JSON Web Tokens (RFC 7519), signed with Ed25519 (RFC 8037)."""

import json
from datetime import UTC, datetime, timedelta

import jwt
from pydantic import SecretStr
from uuid_utils.compat import uuid7

from shared.identity import ALGORITHM, AUDIENCE, ISSUER

__all__ = ["TokenSigner"]

_LIFETIME = timedelta(minutes=10)


class TokenSigner:
    """Signs access tokens with a private JSON Web Key."""

    def __init__(self, signing_key: SecretStr) -> None:
        self._key = jwt.PyJWK(json.loads(signing_key.get_secret_value()))

    def sign(self, user_id: str, session_id: str) -> tuple[str, datetime]:
        """Return a token of a session of the user, and when it expires."""
        now = datetime.now(UTC)
        expires_at = (now + _LIFETIME).replace(microsecond=0)
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user_id,
            "sid": session_id,
            "jti": str(uuid7()),
            "iat": now,
            "exp": expires_at,
        }
        token = jwt.encode(claims, self._key, ALGORITHM, headers={"kid": self._key.key_id})
        return token, expires_at
