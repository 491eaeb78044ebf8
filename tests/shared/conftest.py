"""Fixtures of the tests that change something in a database."""

from collections.abc import AsyncIterator, Callable

import pytest

from tests.notes import Notes, mongo_notes, postgres_notes

Unique = Callable[[str], str]


@pytest.fixture(params=["postgres", "mongo"])
async def notes(
    request: pytest.FixtureRequest, unique: Unique, postgres_url: str, mongo_url: str
) -> AsyncIterator[Notes]:
    """A database of its own."""
    if request.param == "postgres":
        async with postgres_notes(postgres_url, unique) as opened:
            yield opened
    else:
        async with mongo_notes(mongo_url, unique) as opened:
            yield opened
