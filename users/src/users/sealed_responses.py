"""Encryption of refresh responses, which are stored for clients that repeat the call.

A response is encrypted (AES-256-GCM) with a key that is derived (HKDF) from the presented refresh
token and the idempotency key of the call. Neither of them is stored, so the database alone does
not disclose the response, and no other token or key decrypts it.
"""

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from users.refresh_tokens import RefreshToken

__all__ = ["open_response", "seal_response"]

_NONCE_BYTES: Final = 12
"""Nonce of AES-GCM (NIST SP 800-38D, section 8.2)."""


def seal_response(response: bytes, token: RefreshToken, operation_id: str) -> bytes:
    """Return `response` encrypted for a repetition with the same token and operation id."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = _cipher(token, operation_id).encrypt(nonce, response, token.session_id.encode())
    return nonce + sealed


def open_response(sealed: bytes, token: RefreshToken, operation_id: str) -> bytes | None:
    """Return the response; None if it was sealed for another token or operation id."""
    nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return _cipher(token, operation_id).decrypt(nonce, ciphertext, token.session_id.encode())
    except InvalidTag:
        return None


def _cipher(token: RefreshToken, operation_id: str) -> AESGCM:
    info = b"postbus refresh answer " + operation_id.encode()
    return AESGCM(HKDF(SHA256(), 32, salt=None, info=info).derive(token.secret))
