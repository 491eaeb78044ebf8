"""A worker: its health, the events that it leaves, and the tokens that it accepts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, tzinfo
from typing import Self

import pytest
import sqlalchemy as sa
import structlog.testing

from postbus import reasons
from postbus.bus.v1 import CheckRequest, HealthServiceStub
from shared.access_tokens import TokenVerifier
from shared.bus import ServiceChannel
from shared.bus.memory import MemoryBus
from shared.context import Context
from shared.data.postgres_sessions import Postgres
from shared.errors import NotReadyError, ServiceError
from shared.outbox.outbox import EncodedEvent
from shared.runtime.session_verifier import SessionVerifier
from shared.runtime.worker import Application, Health, serve
from tests.idle import complete
from tests.notes import Notes, an_operation, postgres_notes, publish
from tests.people import eventually
from tests.tokens import TokenMaker

Unique = Callable[[str], str]
CONTEXT = Context(name="", deadline=0, traceparent="")


@complete
class Posts:
    """Handlers for every method of `posts`."""


class UnreliableBus(MemoryBus):
    """Refuses the first event, and records the next ones."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = 0
        self.event_ids: list[str] = []

    async def publish_encoded(self, event: EncodedEvent) -> None:
        if not self.refused:
            self.refused += 1
            raise ServiceError(reasons.NOT_CONNECTED, "Unavailable.")
        self.event_ids.append(event.id)


@pytest.fixture
async def notes(postgres_url: str, unique: Unique) -> AsyncIterator[Notes]:
    async with postgres_notes(postgres_url, unique) as opened:
        yield opened


async def test_health_check_ends_after_half_a_second_whatever_the_probes_do() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    async def fail() -> None:
        raise RuntimeError("unforeseen")

    async def respond() -> None:
        pass

    health = Health({"hangs": hang, "fails": fail, "responds": respond})
    async with asyncio.timeout(3):
        response = await health.check(CheckRequest(), CONTEXT)

    messages = {part.name: (part.ready, part.message) for part in response.parts}
    assert messages == {
        "hangs": (False, "No response within 0.5 seconds."),
        "fails": (False, "Unavailable: RuntimeError."),
        "responds": (True, ""),
    }


async def test_what_a_dependency_lacks_is_logged_once_at_the_start_and_once_when_it_changes(
    verifier: TokenVerifier,
) -> None:
    missing = "The schema is missing. Run: python -m posts migrate"

    async def probe() -> None:
        if missing:
            raise NotReadyError(missing)

    bus, checked = MemoryBus(), []
    application = Application(handlers=[Posts()], probes={"database": probe})
    health = HealthServiceStub(ServiceChannel(bus, worker="posts"))
    with structlog.testing.capture_logs() as lines:
        async with serve("posts", application, bus, verifier):
            logged = [line["event"] for line in lines]
            checked += [(await health.check(CheckRequest())).parts[0] for _ in range(2)]
            missing = ""
            checked += [(await health.check(CheckRequest())).parts[0] for _ in range(2)]

    assert logged == ["dependency.not_ready"]
    assert [line["event"] for line in lines] == ["dependency.not_ready", "dependency.ready"]
    assert lines[0]["message"] == "The schema is missing. Run: python -m posts migrate"
    assert [part.message for part in checked] == [lines[0]["message"]] * 2 + [""] * 2
    assert [part.ready for part in checked] == [False, False, True, True]


async def test_worker_that_stops_publishes_the_events_that_are_left(
    notes: Notes, verifier: TokenVerifier
) -> None:
    bus = UnreliableBus()
    application = Application(handlers=[Posts()], probes={}, store=notes.store)

    async def handler() -> bytes:
        publish("left")
        return b""

    async def delayed() -> bool:
        return any(line["event"] == "relay.delayed" for line in lines)

    with structlog.testing.capture_logs() as lines:
        async with serve("posts", application, bus, verifier):
            await notes.store.perform(an_operation("left"), handler)
            await eventually(delayed)
        # the relay was waiting for its next attempt

    assert bus.event_ids == ["left"]
    assert isinstance(notes.store, Postgres)
    async with notes.store.transaction() as session:
        count = await (await session.connection()).execute(sa.text("SELECT count(*) FROM outbox"))
    assert count.scalar_one() == 0


async def test_worker_that_has_no_sessions_reports_it(verifier: TokenVerifier) -> None:
    sessions = SessionVerifier(MemoryBus(), verifier)

    response = await Health({"sessions": sessions.require_ready}).check(CheckRequest(), CONTEXT)

    assert [(part.name, part.ready) for part in response.parts] == [("sessions", False)]


async def test_worker_reports_a_warning_of_its_bus_and_is_ready(verifier: TokenVerifier) -> None:
    bus, application = MemoryBus(), Application(handlers=[Posts()], probes={})
    health = HealthServiceStub(ServiceChannel(bus, worker="posts"))
    async with serve("posts", application, bus, verifier):
        bus.warning = "Two workers have replied."
        parts = (await health.check(CheckRequest())).parts

    assert [(part.name, part.ready, part.message) for part in parts] == [
        ("sessions", True, ""),
        ("calls", True, "Two workers have replied."),
    ]


async def test_token_that_was_accepted_is_refused_once_it_expires(
    verifier: TokenVerifier, tokens: TokenMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = SessionVerifier(MemoryBus(), verifier)
    await sessions.run()
    token = tokens.token("alice", lifetime=timedelta(minutes=5))
    caller = sessions.verify(token)
    assert sessions.verify(token) is caller  # verified once
    expiry = caller.expires_at.timestamp()

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp(expiry + 31, tz)

    monkeypatch.setattr("shared.access_tokens.time.time", lambda: expiry + 31)
    monkeypatch.setattr("jwt.api_jwt.datetime", Later)

    with pytest.raises(ServiceError, match="TOKEN_EXPIRED"):
        sessions.verify(token)
