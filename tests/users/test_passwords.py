"""Password hashes."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from users.passwords import Passwords, Purpose


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    with closing(Passwords()) as opened:
        yield opened


async def test_only_the_right_password_matches_its_hash(passwords: Passwords) -> None:
    hashed = await passwords.hash(Purpose.LOG_IN, "open sesame")

    assert hashed.startswith("$argon2id$")
    right = await passwords.verify(Purpose.LOG_IN, hashed, "open sesame")
    wrong = await passwords.verify(Purpose.LOG_IN, hashed, "open barley")
    assert (right.matches, right.new_hash) == (True, None)
    assert (wrong.matches, wrong.new_hash) == (False, None)


async def test_no_password_matches_an_unknown_account(passwords: Passwords) -> None:
    for password in ("open sesame", "unknown account"):
        assert not (await passwords.verify(Purpose.LOG_IN, None, password)).matches
