"""Password hashes."""

import time
from collections.abc import Iterator
from contextlib import closing
from statistics import median

import pytest

from shared.errors import ServiceError
from users.credential_rules import require_uncommon
from users.passwords import Passwords, Purpose


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    with closing(Passwords()) as opened:
        yield opened


async def test_only_the_right_password_matches_its_hash(passwords: Passwords) -> None:
    hashed = await passwords.hash(Purpose.LOG_IN, "open sesame")

    assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    right = await passwords.verify(Purpose.LOG_IN, hashed, "open sesame")
    wrong = await passwords.verify(Purpose.LOG_IN, hashed, "open barley")
    assert (right.matches, right.new_hash) == (True, None)
    assert (wrong.matches, wrong.new_hash) == (False, None)


async def test_no_password_matches_an_unknown_account(passwords: Passwords) -> None:
    for password in ("open sesame", "unknown account"):
        assert not (await passwords.verify(Purpose.LOG_IN, None, password)).matches


async def test_unknown_account_takes_as_long_as_a_wrong_password(passwords: Passwords) -> None:
    hashed = await passwords.hash(Purpose.LOG_IN, "open sesame")

    async def seconds(password_hash: str | None) -> float:
        began = time.perf_counter()
        await passwords.verify(Purpose.LOG_IN, password_hash, "wrong")
        return time.perf_counter() - began

    pairs = [(await seconds(None), await seconds(hashed)) for _ in range(7)]

    unknown, wrong = (median(each) for each in zip(*pairs, strict=True))
    assert wrong / 2 < unknown < wrong * 2


async def test_password_is_the_same_in_composed_and_decomposed_form(passwords: Passwords) -> None:
    hashed = await passwords.hash(Purpose.LOG_IN, "Cafe\u0301 au lait")

    assert (await passwords.verify(Purpose.LOG_IN, hashed, "Caf\u00e9 au lait")).matches


@pytest.mark.parametrize(
    ("password", "accepted"),
    [
        ("x7!qalice", False),  # four characters without the name
        ("x7!qw2ealice", False),
        ("x7!qw2eralice", True),
        ("x7!qw2e", False),
        ("x7!qw2er", True),
        ("xyxyxyxy", False),
        ("xyzxyzxy", True),
        ("al-x7!qw", True),  # a word of two characters counts
    ],
)
def test_password_has_eight_characters_besides_the_context_and_three_different_ones(
    password: str, accepted: bool
) -> None:
    def check() -> None:
        require_uncommon(password, username="alice", email="al@mail.example", field="password")

    if accepted:
        check()
    else:
        with pytest.raises(ServiceError, match="PASSWORD_TOO_COMMON"):
            check()


def test_longest_word_of_the_context_is_removed_first() -> None:
    with pytest.raises(ServiceError, match="PASSWORD_TOO_COMMON"):  # seven characters are left
        require_uncommon(
            "ann2026x7!qw2e", username="ann", email="ann2026@example.com", field="password"
        )
