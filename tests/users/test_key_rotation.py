"""Rotation of the keys that sign access tokens."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from shared.access_tokens import TokenVerifier
from shared.errors import ServiceError
from tools.secrets import Secrets, rotate_keys
from users.token_signer import TokenSigner


def signed(secrets: Secrets) -> str:
    return TokenSigner(SecretStr(secrets.postbus_signing_key)).sign("user", "session")[0]


def verifier(secrets: Secrets) -> TokenVerifier:
    return TokenVerifier(secrets.postbus_verification_keys)


def test_tokens_are_verified_across_a_rotation_in_any_order_of_restarts(tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    before = Secrets.load_or_create(file)
    rotate_keys(file)
    after = Secrets.load_or_create(file)

    assert after.postbus_signing_key == before.postbus_next_signing_key
    for signer in (before, after):
        for verified_by in (before, after):
            assert verifier(verified_by).verify(signed(signer)).user_id == "user"


def test_tokens_of_the_key_before_the_previous_one_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    oldest = signed(Secrets.load_or_create(file))
    for _ in range(2):
        rotate_keys(file)

    with pytest.raises(ServiceError, match="TOKEN_INVALID"):
        verifier(Secrets.load_or_create(file)).verify(oldest)
