"""Verification of access tokens: clocks, types, claims, malformed input, and the cache."""

import base64
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import jwt
import pytest
import structlog.testing

from shared import access_tokens
from shared.access_tokens import TokenVerifier
from shared.errors import Code, ServiceError
from tests.tokens import TokenMaker

ID = "018f3f6e-0000-7000-8000-000000000001"


def refused(verifier: TokenVerifier, token: str) -> str:
    """Return the reason for which a token is refused."""
    with pytest.raises(ServiceError) as raised:
        verifier.verify(token)
    assert raised.value.code is Code.UNAUTHENTICATED
    return raised.value.reason


def from_now(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_clock_of_the_signer_may_be_30_seconds_ahead(claim: str, tokens: TokenMaker) -> None:
    verifier = TokenVerifier(tokens.key_set)
    ahead, *too_far = (
        tokens.token(ID, **cast("Any", {claim: from_now(seconds)})) for seconds in (25, 40, 41)
    )

    assert verifier.verify(ahead).user_id == ID
    with structlog.testing.capture_logs() as lines:
        assert [refused(verifier, token) for token in too_far] == ["TOKEN_INVALID"] * 2
    [line] = lines
    assert (line["event"], line["process"]) == ("clock.skew", "users")
    assert 38 < line["seconds"] <= 40


def test_token_is_accepted_for_30_seconds_after_its_expiry(
    tokens: TokenMaker, verifier: TokenVerifier
) -> None:
    """The clock of the verifier may be ahead."""
    late, too_late = (tokens.token(ID, exp=from_now(seconds)) for seconds in (-25, -31))

    caller = verifier.verify(late)

    assert 3 < caller.remaining <= 5
    assert verifier.verify(late) is caller  # cached
    assert refused(verifier, too_late) == "TOKEN_EXPIRED"


@pytest.mark.parametrize("typ", ["JWT", "", "rt+jwt", "at+jwt\0"])
def test_token_of_another_type_is_refused(
    typ: str, tokens: TokenMaker, verifier: TokenVerifier
) -> None:
    assert refused(verifier, tokens.token(ID, typ=typ)) == "TOKEN_INVALID"


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt"])
def test_type_is_compared_as_a_media_type(
    typ: str, tokens: TokenMaker, verifier: TokenVerifier
) -> None:
    assert verifier.verify(tokens.token(ID, typ=typ)).user_id == ID


IDS: tuple[Any, ...] = (5, [ID], {}, None, True, "", "a\0b", "\ud800", "é", "x" * 65, f"{ID}\n")
EXPIRIES: tuple[Any, ...] = ("soon", str(2**33), [], True, math.inf, -math.inf, math.nan, 10**30)
TIMES: tuple[Any, ...] = ("x", math.inf, [], 10**30)
MALFORMED: list[tuple[str, Any]] = [
    *(("sub", value) for value in IDS),
    *(("sid", value) for value in IDS),
    *(("exp", value) for value in EXPIRIES),
    ("exp", 253402300800 + 1),  # in the year 10000
    *(("iat", value) for value in TIMES),
    *(("nbf", value) for value in TIMES),
    ("jti", 5),
    ("aud", 5),
]


@pytest.mark.parametrize(("claim", "value"), MALFORMED, ids=lambda each: repr(each)[:20])
def test_malformed_claims_are_refused(
    claim: str, value: Any, tokens: TokenMaker, verifier: TokenVerifier
) -> None:
    assert refused(verifier, tokens.token(ID, **{claim: value})) in (
        "TOKEN_INVALID",
        "TOKEN_EXPIRED",
    )


@pytest.mark.parametrize("claim", ["exp", "iat", "sub", "sid", "jti", "iss", "aud"])
def test_token_without_a_claim_is_refused(
    claim: str, verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    token = tokens.token(ID)
    content = jwt.decode(token, options={"verify_signature": False})
    del content[claim]
    headers = jwt.get_unverified_header(token)

    signed = jwt.encode(content, tokens._key, "EdDSA", headers=headers)

    assert refused(verifier, signed) == "TOKEN_INVALID"


@pytest.mark.parametrize(
    "part",
    [b"[" * 5000, b'{"a":' * 5000, b"5", b"null", b'"x"', b"\xff", b'{"kid":[],"typ":"at+jwt"}'],
    ids=lambda part: repr(part[:10]),
)
def test_malformed_headers_and_bodies_are_refused(
    part: bytes, tokens: TokenMaker, verifier: TokenVerifier
) -> None:
    malformed = base64.urlsafe_b64encode(part).rstrip(b"=").decode()
    header, body, signature = tokens.token(ID).split(".")

    for token in (
        f"{malformed}.{body}.{signature}",
        f"{header}.{malformed}.{signature}",
        malformed,
        "é.é.é",
        "\ud800",
    ):
        assert refused(verifier, token) == "TOKEN_INVALID"


def test_unsigned_token_of_the_right_type_is_refused(verifier: TokenVerifier) -> None:
    claims = {"iss": "postbus.users", "aud": "postbus", "sub": ID, "sid": ID, "jti": ID}
    times = {"iat": from_now(-1), "exp": from_now(600)}

    token = jwt.encode(claims | times, "", "none", headers={"kid": "test", "typ": "at+jwt"})

    assert refused(verifier, token) == "TOKEN_INVALID"


def test_cache_of_verified_tokens_is_bounded_and_ends_with_their_expiry(
    tokens: TokenMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = TokenVerifier(tokens.key_set)
    monkeypatch.setattr(access_tokens, "_CACHED", 3)
    decoded = record_decoding(monkeypatch)
    many = [tokens.token(ID) for _ in range(4)]

    for token in many:
        verifier.verify(token)
    verifier.verify(many[3])
    assert (len(verifier._verified), len(decoded)) == (3, 4)
    verifier.verify(many[0])
    assert (len(verifier._verified), len(decoded)) == (3, 5)
    verifier._verified[many[0]] = access_tokens.Caller(
        user_id=ID, session_id=ID, expires_at=from_now(-31)
    )
    verifier.verify(many[0])

    assert len(decoded) == 6


def record_decoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each token is added when its signature is verified."""
    decoded: list[str] = []
    real: Callable[..., Any] = jwt.decode

    def decode(token: str, *args: Any, **options: Any) -> Any:
        decoded.append(token)
        return real(token, *args, **options)

    monkeypatch.setattr(jwt, "decode", decode)
    return decoded


def test_cache_of_verified_tokens_has_4096_entries(tokens: TokenMaker) -> None:
    verifier = TokenVerifier(tokens.key_set)
    caller = verifier.verify(first := tokens.token(ID))
    verifier._verified.update({f"token {number}": caller for number in range(4_095)})

    verifier.verify(tokens.token(ID))

    assert len(verifier._verified) == 4_096
    assert first not in verifier._verified
