"""Access tokens of the service `users`, and invalid ones."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm
from uuid_utils.compat import uuid7


class TokenMaker:
    """A signing key and the tokens made with it."""

    def __init__(self, kid: str = "test") -> None:
        self._key = Ed25519PrivateKey.generate()
        self._kid = kid

    @property
    def signing_key(self) -> str:
        """Return the private key in the format of POSTBUS_SIGNING_KEY."""
        return json.dumps(self._jwk(OKPAlgorithm.to_jwk(self._key)))

    @property
    def key_set(self) -> str:
        """Return the public key in the format of POSTBUS_VERIFICATION_KEYS."""
        return json.dumps({"keys": [self._jwk(OKPAlgorithm.to_jwk(self._key.public_key()))]})

    def _jwk(self, text: str) -> dict[str, Any]:
        return {**json.loads(text), "kid": self._kid, "alg": "EdDSA"}

    def token(
        self,
        user_id: str,
        *,
        lifetime: timedelta = timedelta(minutes=5),
        typ: str = "at+jwt",
        **claims: Any,
    ) -> str:
        """Return a token of the user; `claims` replace its own claims."""
        now = datetime.now(UTC)
        content = {
            "iss": "postbus.users",
            "aud": "postbus",
            "sub": user_id,
            "sid": str(uuid7()),
            "jti": str(uuid7()),
            "iat": now + min(lifetime, timedelta()),
            "exp": now + lifetime,
        }
        return jwt.encode(
            content | claims, self._key, "EdDSA", headers={"kid": self._kid, "typ": typ}
        )
