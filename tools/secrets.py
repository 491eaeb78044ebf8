"""The secrets of one installation: generated once, stored in a file with mode 600."""

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tools.accounts.passwords import password_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """Passwords, and the keys that sign and verify access tokens (RFC 8037 JWK, JWKS).

    The first passwords are the administrators'; `accounts` has those of `tools.accounts`, by name.

    The verification keys are the previous, the signing and the next key. Every process has a key
    before the first token is signed with it, and until its last token has expired.
    """

    rabbitmq_password: str
    postgres_password: str
    mongo_password: str
    mongo_key: str
    """The key of MongoDB's replica set: 6 to 1024 characters of base64."""
    postbus_signing_key: str
    postbus_next_signing_key: str
    postbus_verification_keys: str
    postbus_page_token_key: str
    alice_password: str
    bob_password: str
    accounts: Mapping[str, str]

    @classmethod
    def load_or_create(cls, file: Path) -> Self:
        """Read the file; generate and store missing secrets (mode 600)."""
        known = _parse(file.read_text()) if file.exists() else {}
        names = [field.name for field in fields(cls) if field.name != "accounts"]
        if any(name not in known for name in (*names, *password_names())):
            known = _verifiable(_new() | known)
            _write(file, known)
        accounts = {name: known[name] for name in password_names()}
        return cls(accounts=accounts, **{name: known[name] for name in names})


def rotate_keys(file: Path) -> None:
    """Make the next key the signing key, generate a new next key, and drop the oldest."""
    Secrets.load_or_create(file)
    known = _parse(file.read_text())
    current, following = known["postbus_signing_key"], known["postbus_next_signing_key"]
    known |= {
        "postbus_signing_key": following,
        "postbus_next_signing_key": _new_key(),
        "postbus_verification_keys": _json({"keys": [_public(json.loads(current))]}),
    }
    _write(file, _verifiable(known))


def _verifiable(known: dict[str, str]) -> dict[str, str]:
    """Return the key set with the keys that were missing."""
    keys = json.loads(known["postbus_verification_keys"])["keys"]
    for name in ("postbus_signing_key", "postbus_next_signing_key"):
        public = _public(json.loads(known[name]))
        if public["kid"] not in [key["kid"] for key in keys]:
            keys.append(public)
    return known | {"postbus_verification_keys": _json({"keys": keys})}


def _new() -> dict[str, str]:
    passwords = (
        *password_names(),
        "rabbitmq_password",
        "postgres_password",
        "mongo_password",
        "postbus_page_token_key",
        "alice_password",
        "bob_password",
    )
    return {name: secrets.token_urlsafe(18) for name in passwords} | {
        "mongo_key": base64.b64encode(secrets.token_bytes(96)).decode(),
        "postbus_signing_key": _new_key(),
        "postbus_next_signing_key": _new_key(),
        "postbus_verification_keys": _json({"keys": []}),
    }


def _new_key() -> str:
    """Return a new Ed25519 key as private JWK; its id is the thumbprint of RFC 7638."""
    key = Ed25519PrivateKey.generate()
    public = {
        "crv": "Ed25519",
        "kty": "OKP",
        "x": _base64url(key.public_key().public_bytes_raw()),
    }
    canonical = json.dumps(public, separators=(",", ":"), sort_keys=True)
    kid = _base64url(hashlib.sha256(canonical.encode()).digest())
    public |= {"kid": kid, "alg": "EdDSA", "use": "sig"}
    return _json(public | {"d": _base64url(key.private_bytes_raw())})


def _public(key: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in key.items() if name != "d"}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _parse(text: str) -> dict[str, str]:
    """Parse lines of the form NAME='value', the format of Docker Compose."""
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    pairs = (line.split("=", 1) for line in lines)
    return {name.strip().lower(): value.strip().strip("'") for name, value in pairs}


def _write(file: Path, values: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}.draft")
    draft.touch(mode=0o600)
    lines = [f"{name.upper()}='{value}'" for name, value in values.items()]
    draft.write_text("# Made by Postbus's tools; never commit it.\n" + "\n".join(lines) + "\n")
    draft.replace(file)
