"""Device tokens: valid for one account, and until its password changes."""

import base64
from datetime import UTC, datetime

from pydantic import SecretStr

from users.device_tokens import DeviceTokens
from users.models import User

NOW = datetime(2026, 1, 2, tzinfo=UTC)
TOKENS = DeviceTokens(SecretStr("the key"))


def account(id_: str = "alice", password_version: int = 1) -> User:
    return User(
        id=id_,
        username=id_,
        email=f"{id_}@example.com",
        password_hash="hash",  # noqa: S106  # no password
        password_version=password_version,
        created_at=NOW,
        updated_at=NOW,
    )


def test_device_token_has_a_random_id_of_128_bits_and_a_mac_of_256() -> None:
    token, other = (TOKENS.issue(account()) for _ in range(2))
    data = base64.urlsafe_b64decode(token)

    assert (len(data), token == other) == (16 + 32, False)
    assert TOKENS.read(account(), token) == data[:16]
    assert TOKENS.issue(account(), data[:16]) == token


def test_device_token_is_valid_for_one_account_password_and_key() -> None:
    token = TOKENS.issue(account())
    data = base64.urlsafe_b64decode(token)
    changed = base64.urlsafe_b64encode(data[:-1] + bytes([data[-1] ^ 1])).decode()

    assert TOKENS.read(account("bob"), token) is None
    assert TOKENS.read(account(password_version=2), token) is None
    assert DeviceTokens(SecretStr("another key")).read(account(), token) is None
    for malformed in (changed, token[:20], f"{token[:9]}!{token[9:]}", "x", "é", ""):
        assert TOKENS.read(account(), malformed) is None


def test_mac_of_a_device_token_has_a_key_of_its_own() -> None:
    """The token was computed by hand, from HMAC alone (RFC 5869, RFC 2104)."""
    token = "AAECAwQFBgcICQoLDA0OD27iC8E_SDtrvgz-mF72-w_lDZHKbtiYVwcN_-HJ4MYf"  # noqa: S105

    assert TOKENS.issue(account(), bytes(range(16))) == token
