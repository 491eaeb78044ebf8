"""Refresh tokens: opaque to clients, stored as hashes."""

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass
from typing import Self
from uuid import UUID

from uuid_utils.compat import uuid7

__all__ = ["RefreshToken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshToken:
    """A refresh token: session id, secret of the token family, and secret of this token."""

    session_id: str
    family: bytes
    secret: bytes

    @classmethod
    def new(cls) -> Self:
        """Return the first token of a new session."""
        return cls(
            session_id=str(uuid7()), family=secrets.token_bytes(16), secret=secrets.token_bytes(32)
        )

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Parse a token; None if `text` is malformed."""
        try:
            data = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
            session_id = str(UUID(bytes=data[:16]))
        except (binascii.Error, ValueError):
            return None
        return cls(session_id=session_id, family=data[16:32], secret=data[32:])

    def __str__(self) -> str:
        data = UUID(self.session_id).bytes + self.family + self.secret
        return base64.urlsafe_b64encode(data).decode()

    def next(self) -> "RefreshToken":
        """Return a new token of the same family, which replaces this one."""
        return RefreshToken(
            session_id=self.session_id, family=self.family, secret=secrets.token_bytes(32)
        )

    @property
    def family_hash(self) -> bytes:
        """SHA-256 of the family secret, as stored. The secret is random, so no salt is needed."""
        return hashlib.sha256(self.family).digest()

    @property
    def secret_hash(self) -> bytes:
        """SHA-256 of the secret, as stored."""
        return hashlib.sha256(self.secret).digest()
