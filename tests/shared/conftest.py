"""Fixtures of several modules: a database with notes, and verifiers of sessions."""

from collections.abc import AsyncIterator, Callable

import pytest

from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus
from shared.runtime.session_verifier import SessionVerifier
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


@pytest.fixture
async def sessions(verifier: TokenVerifier) -> SessionVerifier:
    """A verifier that has received no revocation."""
    sessions = SessionVerifier(MemoryBus(), verifier)
    await sessions.run()
    return sessions
