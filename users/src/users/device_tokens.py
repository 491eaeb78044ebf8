"""Device tokens: each identifies a device that has logged in to an account before.

A token is a random id and its HMAC for the account, as in OWASP's "device cookies"
(https://owasp.org/www-community/Slow_Down_Online_Guessing_Attacks_with_Device_Cookies).
"""

import base64
import binascii
import hmac
import secrets
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from users.models import User

__all__ = ["DeviceTokens"]

_ID_BYTES: Final = 16
"""Random bytes that identify a device."""


class DeviceTokens:
    """Issues and reads device tokens, with a key derived from `secret`."""

    def __init__(self, secret: SecretStr) -> None:
        derived = HKDF(SHA256(), 32, salt=None, info=b"postbus device token")
        self._key = derived.derive(secret.get_secret_value().encode())

    def issue(self, user: User, device_id: bytes | None = None) -> str:
        """Return the token of a device for the account; without `device_id`, of a new device."""
        id_ = device_id or secrets.token_bytes(_ID_BYTES)
        return base64.urlsafe_b64encode(id_ + self._mac(user, id_)).decode()

    def read(self, user: User, token: str) -> bytes | None:
        """Return the device id; None if the token is not valid for this account and password."""
        try:
            data = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        id_, mac = data[:_ID_BYTES], data[_ID_BYTES:]
        return id_ if hmac.compare_digest(mac, self._mac(user, id_)) else None

    def _mac(self, user: User, id_: bytes) -> bytes:
        """Return the MAC. It covers the password version: a new password revokes all tokens."""
        return hmac.digest(
            self._key, f"{user.id} {user.password_version} ".encode() + id_, "sha256"
        )
