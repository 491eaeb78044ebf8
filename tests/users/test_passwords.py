"""Password hashes."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from users.passwords import Passwords, Purpose


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    with closing(Passwords()) as opened:
        yield opened


async def test_only_the_right_password_fits_its_hash(passwords: Passwords) -> None:
    hashed = await passwords.hash(Purpose.LOG_IN, "open sesame")

    assert hashed.startswith("$argon2id$")
    right = await passwords.verify(Purpose.LOG_IN, hashed, "open sesame")
    wrong = await passwords.verify(Purpose.LOG_IN, hashed, "open barley")
    assert (right.fits, right.renewed) == (True, None)
    assert (wrong.fits, wrong.renewed) == (False, None)


async def test_no_password_fits_an_account_that_does_not_exist(passwords: Passwords) -> None:
    for password in ("open sesame", "unknown account"):
        assert not (await passwords.verify(Purpose.LOG_IN, None, password)).fits
