"""Access tokens: JSON Web Tokens (RFC 7519), signed with Ed25519 (RFC 8037)."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt
from pydantic import SecretStr
from uuid_utils.compat import uuid7

from shared.access_tokens import ACCESS_TOKEN_SECONDS, ALGORITHM, AUDIENCE, ISSUER, TOKEN_TYPE
from users.refresh_tokens import RefreshToken

__all__ = ["TokenSigner"]

_LIFETIME: Final = timedelta(seconds=ACCESS_TOKEN_SECONDS)


class TokenSigner:
    """Signs access tokens with a private JSON Web Key."""

    def __init__(self, signing_key: SecretStr) -> None:
        self._key = jwt.PyJWK(json.loads(signing_key.get_secret_value()))

    def sign(self, user_id: str, session_id: str) -> tuple[str, datetime]:
        """Return an access token of a session, and its expiry."""
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
        headers = {"kid": self._key.key_id, "typ": TOKEN_TYPE}
        return jwt.encode(claims, self._key, ALGORITHM, headers=headers), expires_at

    def fields(
        self, user_id: str, token: RefreshToken, refresh_expires_at: datetime
    ) -> dict[str, Any]:
        """Return the fields that LogInResponse and RefreshSessionResponse share, by name."""
        access_token, expires_at = self.sign(user_id, token.session_id)
        return {
            "access_token": access_token,
            "expires_at": expires_at,
            "refresh_token": str(token),
            "refresh_expires_at": refresh_expires_at,
            "session_id": token.session_id,
        }
