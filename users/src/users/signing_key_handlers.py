"""Handler for the rpc of AuthService that returns the public keys of access tokens."""

import json
from dataclasses import dataclass

from postbus.users.v1 import (
    AuthServiceBase,
    GetSigningKeysRequest,
    GetSigningKeysResponse,
    SigningKey,
)
from shared.bus import MessagePattern
from shared.context import Context

__all__ = ["SigningKeyHandlers"]

_MEMBERS = ("kty", "crv", "x", "kid", "alg", "use")


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKeyHandlers:
    """Publishes `verification_keys`, a JSON Web Key Set (RFC 7517)."""

    verification_keys: str

    @MessagePattern(AuthServiceBase.get_signing_keys)
    async def get_signing_keys(
        self, _request: GetSigningKeysRequest, _context: Context
    ) -> GetSigningKeysResponse:
        """Return the public keys that verify access tokens."""
        keys = json.loads(self.verification_keys)["keys"]
        return GetSigningKeysResponse(
            keys=[SigningKey(**{name: key.get(name, "") for name in _MEMBERS}) for key in keys]
        )
