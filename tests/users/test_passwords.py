"""Password hashes."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from users.passwords import Passwords


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    with closing(Passwords()) as opened:
        yield opened


async def test_only_the_right_password_fits_its_hash(passwords: Passwords) -> None:
    hashed = await passwords.hash("open sesame")

    assert hashed.startswith("$argon2id$")
    assert await passwords.verify(hashed, "open sesame")
    assert not await passwords.verify(hashed, "open barley")


async def test_no_password_fits_an_account_that_does_not_exist(passwords: Passwords) -> None:
    assert not await passwords.verify(None, "open sesame")
