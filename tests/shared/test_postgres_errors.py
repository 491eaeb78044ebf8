"""Errors of PostgreSQL become the answers of one table, wherever they occur."""

import asyncio
import logging
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import asyncpg.exceptions
import httpx
import pytest
import sqlalchemy as sa
import structlog.testing
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.context import Context
from shared.data import postgres_sessions
from shared.data.postgres_connections import create_engine
from shared.data.postgres_sessions import Postgres, open_postgres
from shared.errors import Code, NotReadyError, Outcome, ServiceError
from shared.limited_log import LimitedLog
from shared.outbox import postgres_errors, postgres_unit_of_work
from shared.outbox.postgres_errors import DatabaseFaultError
from shared.outbox.postgres_sqlstates import RULES, Answer, rule_of
from shared.runtime.logs import configure_logs
from tests.notes import PostgresNotes, an_operation, postgres_notes
from tests.proxy import Proxy

Unique = Callable[[str], str]

NO, YES = Outcome.NO_EFFECT, Outcome.UNKNOWN
UNAVAILABLE = {  # SQLSTATE: outcome before the commit, and at the commit
    "08000": (NO, YES),
    "08003": (NO, YES),
    "08006": (NO, YES),
    "08007": (YES, YES),
    "08P01": (NO, YES),
    "25006": (NO, NO),
    "25P03": (NO, YES),
    "26000": (NO, NO),
    "28000": (NO, NO),
    "28P01": (NO, NO),
    "3D000": (NO, NO),
    "40003": (YES, YES),
    "42501": (NO, NO),
    "42703": (NO, NO),
    "42P01": (NO, NO),
    "42P05": (NO, NO),
    "53000": (NO, NO),
    "53100": (NO, NO),
    "53200": (NO, NO),
    "53300": (NO, NO),
    "53400": (NO, NO),
    "57014": (NO, YES),
    "57P01": (NO, YES),
    "57P02": (NO, YES),
    "57P03": (NO, YES),
    "57P04": (NO, YES),
    "57P05": (NO, YES),
    "58000": (NO, YES),
    "58030": (NO, YES),
}
CONFLICTS = ("40000", "40001", "40P01", "55P03", "72000")
FAULTS = ("0A000", "22012", "23505", "23514", "25P02", "42601", "54000", "P0001", "XX000")


@pytest.fixture
async def notes(postgres_url: str, unique: Unique) -> AsyncIterator[PostgresNotes]:
    async with postgres_notes(postgres_url, unique) as opened:
        yield opened


async def fail(
    notes: PostgresNotes, state: str, *, at_commit: bool = False, times: int = 1000
) -> None:
    """Let the next inserts fail with an SQLSTATE, in the statement or at the commit."""
    await notes.execute(
        "DROP TRIGGER IF EXISTS failing ON notes",
        "CREATE SEQUENCE IF NOT EXISTS failures",
        "ALTER SEQUENCE failures RESTART",
        "CREATE OR REPLACE FUNCTION failing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF nextval('failures') <= {times} THEN RAISE 'secret value' USING ERRCODE = '{state}';"
        " END IF; RETURN NEW; END $$",
        "CREATE CONSTRAINT TRIGGER failing AFTER INSERT ON notes"
        f" DEFERRABLE INITIALLY {'DEFERRED' if at_commit else 'IMMEDIATE'}"
        " FOR EACH ROW EXECUTE FUNCTION failing()",
    )


async def add_in_unit(notes: PostgresNotes, text: str) -> int:
    """Add a note in a unit of work; return the number of its executions."""
    executions = 0

    async def handler() -> bytes:
        nonlocal executions
        executions += 1
        await notes.add(text)
        return b""

    await notes.store.perform(an_operation(text), handler)
    return executions


async def error_of(notes: PostgresNotes, text: str) -> Exception:
    with pytest.raises((ServiceError, DatabaseFaultError)) as raised:
        await add_in_unit(notes, text)
    return raised.value


def test_every_code_of_appendix_a_has_a_row() -> None:
    found = (getattr(each, "sqlstate", None) for each in vars(asyncpg.exceptions).values())
    codes = {code for code in found if isinstance(code, str)}
    rows = RULES

    assert len(codes) > 250
    assert [code for code in codes if code not in rows and code[:2] not in rows] == []
    unknown = asyncpg.PostgresError.new({"C": "ZZ999", "M": "new"})
    assert rule_of(unknown).answer is Answer.FAULT


@pytest.mark.parametrize("at_commit", [False, True])
async def test_errors_that_the_work_cannot_cure_are_unavailable_with_a_true_outcome(
    notes: PostgresNotes, at_commit: bool
) -> None:
    outcomes = {}
    for state in UNAVAILABLE:
        await fail(notes, state, at_commit=at_commit)
        error = await error_of(notes, state)
        assert isinstance(error, ServiceError), (state, error)
        assert (error.reason, error.retry_after) == ("DATABASE_UNAVAILABLE", 1), state
        outcomes[state] = error.outcome

    assert outcomes == {state: both[at_commit] for state, both in UNAVAILABLE.items()}


async def test_error_at_the_commit_of_a_transaction_has_an_unknown_outcome(
    notes: PostgresNotes,
) -> None:
    outcomes = []
    for at_commit in (False, True):
        await fail(notes, "57P01", at_commit=at_commit)
        with pytest.raises(ServiceError) as raised:
            await notes.add("a transaction of its own")
        outcomes.append(raised.value.outcome)

    assert outcomes == [Outcome.NO_EFFECT, Outcome.UNKNOWN]


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("SELECT CAST($1 AS int)", 2**40),
        ("SELECT CAST($1 AS int)", "secret value"),
        ("SELECT CAST($1 AS timestamptz)", "secret value"),
        ("SELECT CAST($1 AS text)", "secret value \ud800"),
    ],
)
async def test_value_that_the_driver_cannot_send_is_a_fault_of_this_program(
    notes: PostgresNotes, query: str, value: object
) -> None:
    """It would be UNAVAILABLE at every repetition."""
    postgres = notes.store
    assert isinstance(postgres, Postgres)
    for provide in (postgres.transaction, postgres.reading):
        with pytest.raises(DatabaseFaultError) as raised:
            async with provide() as session:
                await (await session.connection()).exec_driver_sql(query, (value,))
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize("in_unit", [False, True], ids=["transaction", "unit of work"])
async def test_commit_without_a_response_has_an_unknown_outcome(
    notes: PostgresNotes, in_unit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the rollback when the session is closed must not replace that of the commit."""
    server, commit = httpx.URL(notes.url), AsyncSession.commit
    proxy = Proxy(server.host, server.port or 5432)
    await proxy.start()

    async def stall_and_commit(session: AsyncSession) -> None:
        proxy.stall()
        await commit(session)

    monkeypatch.setattr(AsyncSession, "commit", stall_and_commit)
    monkeypatch.setattr(postgres_sessions, "_COMMAND_TIMEOUT", 0.3)
    url = str(server.copy_with(host="127.0.0.1", port=proxy.port))
    async with open_postgres(SecretStr(url)) as postgres:
        behind = PostgresNotes(postgres, url)
        adding: Awaitable[object] = (
            add_in_unit(behind, "in doubt") if in_unit else behind.add("in doubt")
        )
        with pytest.raises(ServiceError) as raised:
            await adding
        await proxy.stop()

    assert raised.value.reason == "DATABASE_UNAVAILABLE"
    assert raised.value.outcome == Outcome.UNKNOWN


@pytest.mark.parametrize("at_commit", [False, True])
async def test_work_that_the_database_has_rolled_back_runs_again(
    notes: PostgresNotes, at_commit: bool
) -> None:
    executions = {}
    for state in CONFLICTS:
        await fail(notes, state, at_commit=at_commit, times=2)
        executions[state] = await add_in_unit(notes, state)

    assert executions == dict.fromkeys(CONFLICTS, 3)
    assert [await notes.count(state) for state in CONFLICTS] == [1] * len(CONFLICTS)


async def test_work_that_is_rolled_back_again_and_again_is_aborted_within_its_budget(
    notes: PostgresNotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert postgres_unit_of_work._RETRY_SECONDS == 5
    await fail(notes, "40001")
    began = time.monotonic()
    with Context(name="x", deadline=time.monotonic() + 1, traceparent=""):
        error = await error_of(notes, "budget")
    took = time.monotonic() - began
    monkeypatch.setattr(postgres_unit_of_work, "_RETRY_SECONDS", 0.05)
    async with asyncio.timeout(4):
        without_budget = await error_of(notes, "without")

    assert 0.3 < took <= 1
    for each in (error, without_budget):
        assert isinstance(each, ServiceError)
        assert (each.code, each.reason) == (Code.ABORTED, "DATABASE_CONFLICT")
        assert (each.outcome, each.retry_after) == (Outcome.NO_EFFECT, 1)


async def test_repeated_work_waits_longer_each_time(
    notes: PostgresNotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    await fail(notes, "40P01", times=8)
    monkeypatch.setattr("shared.outbox.postgres_unit_of_work.asyncio.sleep", sleep)
    monkeypatch.setattr("random.uniform", lambda low, _high: low)
    await add_in_unit(notes, "waits")

    assert pauses == [0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.1]


async def test_read_that_is_rolled_back_is_unavailable(notes: PostgresNotes) -> None:
    async with notes.store.reading() as session:
        connection = await session.connection()
        with pytest.raises(ServiceError) as raised:  # noqa: PT012  # the block raises at its end
            async with notes.store.reading() as inner:
                raising = "DO $$ BEGIN RAISE '' USING ERRCODE = '40001'; END $$"
                await (await inner.connection()).execute(sa.text(raising))
        assert not connection.closed

    assert (raised.value.reason, raised.value.outcome) == ("DATABASE_UNAVAILABLE", NO)


async def test_other_errors_are_faults_whose_texts_have_no_values(notes: PostgresNotes) -> None:
    texts = []
    for state in FAULTS:
        await fail(notes, state)
        error = await error_of(notes, "private")
        assert isinstance(error, DatabaseFaultError), (state, error)
        texts.append(str(error))

    assert [text.split()[0] for text in texts] == list(FAULTS)
    assert not any("secret" in text or "private" in text for text in texts)
    assert "INSERT INTO notes" in texts[0]
    assert len(str(DatabaseFaultError("kind", "SELECT " + "x" * 10_000))) < 600


async def test_errors_of_the_engine_have_no_parameters(notes: PostgresNotes) -> None:
    engine = create_engine(SecretStr(notes.url))
    async with engine.connect() as connection:
        query = sa.text("SELECT 1 / length(substr(:text, 1, 0))")
        with pytest.raises(DBAPIError) as raised:
            await connection.execute(query, {"text": "ada@example.com"})
    await engine.dispose()

    assert "division by zero" in str(raised.value)
    assert "ada@" not in str(raised.value)


async def test_unforeseen_constraint_error_writes_no_value_into_the_log(
    notes: PostgresNotes, capsys: pytest.CaptureFixture[str]
) -> None:
    await notes.execute("ALTER TABLE notes ADD UNIQUE (note)", "ALTER TABLE notes ADD num int")

    async def insert(sql: str, **values: object) -> None:
        async with notes.store.transaction() as session:
            await (await session.connection()).execute(sa.text(sql), values)

    broken = [
        ("INSERT INTO notes VALUES (:text)", {"text": "ada@example.com"}),
        ("INSERT INTO notes (num) VALUES (CAST(CAST(:text AS text) AS int))", {"text": "ada@"}),
        ("INSERT INTO notes (num) VALUES (:num)", {"num": "ada@example.com"}),
    ]
    await insert(*broken[0][:1], **broken[0][1])
    log = structlog.get_logger()
    configure_logs("test", "json")
    try:
        for sql, values in broken:
            try:
                await insert(sql, **values)
            except DatabaseFaultError:
                log.exception("request.failed")
    finally:
        structlog.reset_defaults()
        logging.basicConfig(force=True, level=logging.WARNING)
    written = capsys.readouterr().err

    assert written.count("request.failed") == 3
    assert "notes_note_key" in written
    assert "ada@" not in written


@asynccontextmanager
async def refusing(state: str) -> AsyncIterator[str]:
    """Run a server that refuses every connection with an SQLSTATE; give its address."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):  # the request for TLS, and the startup packet
            [length] = struct.unpack("!I", await reader.readexactly(4))
            packet = await reader.readexactly(length - 4)
            if packet != struct.pack("!I", 80877103):
                break
            writer.write(b"N")
        fields = f"SFATAL\0VFATAL\0C{state}\0Mrefused\0\0".encode()
        writer.write(b"E" + struct.pack("!I", len(fields) + 4) + fields)
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    yield f"postgresql://user@127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    server.close()


@pytest.mark.parametrize(
    ("state", "level"),
    [
        *[(state, "warning") for state in ("57P03", "53300", "08P01", "40001")],
        *[(state, "error") for state in ("28P01", "28000", "3D000", "55000", "42704", "P0001")],
    ],
)
async def test_refused_connection_is_unavailable_and_named_in_one_log_line(
    state: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_errors._log, "_written", {})

    async def count() -> None:
        async with postgres.reading() as session:
            await session.connection()

    async def handler() -> bytes:
        await count()
        return b""

    with structlog.testing.capture_logs() as lines:
        async with refusing(state) as url, open_postgres(SecretStr(url)) as postgres:
            for call in (count, lambda: postgres.perform(an_operation("x"), handler)):
                with pytest.raises(ServiceError) as raised:
                    await call()
                error = raised.value
                assert (error.code, error.reason) == (Code.UNAVAILABLE, "DATABASE_UNAVAILABLE")
                assert (error.outcome, error.retry_after) == (Outcome.NO_EFFECT, 1)

    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("database.unavailable", level)
    ]
    assert lines[0]["sqlstate"] == state
    assert isinstance(error.__cause__, NotReadyError)


async def test_invalid_address_is_unavailable_and_its_password_is_not_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres_errors, "_log", LimitedLog())  # other tests have used its line
    with structlog.testing.capture_logs() as lines:
        for url in ("postgresql://user:1/secret@host/x", "mysql://u:secret@h/x", "secret"):
            async with open_postgres(SecretStr(url)) as postgres:
                with pytest.raises(ServiceError, match="DATABASE_UNAVAILABLE"):
                    await postgres.stored_revision()

    assert lines
    assert "secret" not in str(lines)


async def test_pool_is_replaced_after_a_failover_that_leaves_connections_open(
    notes: PostgresNotes,
) -> None:
    name = notes.url.rpartition("/")[2]

    async def fill_pool() -> None:
        """Open every connection of the pool."""
        barrier = asyncio.Barrier(10)

        async def hold() -> None:
            async with notes.store.reading() as session:
                await session.connection()
                await barrier.wait()

        await asyncio.gather(*(hold() for _ in range(10)))

    await notes.execute(
        f'ALTER DATABASE "{name}" SET default_transaction_read_only = on',
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    error = await error_of(notes, "read-only")
    await fill_pool()
    with pytest.raises(ServiceError) as probed:
        await notes.store.stored_revision()
    await fill_pool()
    await notes.execute(
        "SET default_transaction_read_only = off",
        f'ALTER DATABASE "{name}" SET default_transaction_read_only = off',
    )
    first = await error_of(notes, "first")  # on an old connection
    results = await asyncio.gather(*(add_in_unit(notes, f"writable {n}") for n in range(12)))

    for each in (error, probed.value, first):
        assert isinstance(each, ServiceError)
        assert (each.reason, each.outcome) == ("DATABASE_UNAVAILABLE", Outcome.NO_EFFECT)
    assert "read-only" in str(probed.value.__cause__)
    assert results == [1] * 12


async def test_connection_is_replaced_after_five_minutes(
    notes: PostgresNotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pid() -> int:
        async with notes.store.reading() as session:
            query = sa.text("SELECT pg_backend_pid()")
            return int((await (await session.connection()).execute(query)).scalar_one())

    now = time.time()
    first = await pid()
    monkeypatch.setattr("sqlalchemy.pool.base.time.time", lambda: now + 299)
    second = await pid()
    monkeypatch.setattr("sqlalchemy.pool.base.time.time", lambda: now + 302)
    third = await pid()

    assert first == second != third


async def test_work_whose_cached_plan_is_stale_runs_again(notes: PostgresNotes) -> None:
    async def read(connection: AsyncConnection) -> None:
        await connection.execute(sa.text("SELECT * FROM notes"))

    executions = 0

    async def handler() -> bytes:
        nonlocal executions
        executions += 1
        async with notes.store.transaction() as session:
            await read(await session.connection())
        return b""

    await notes.store.perform(an_operation("before"), handler)
    await notes.execute("ALTER TABLE notes ADD COLUMN more int")
    await notes.store.perform(an_operation("after"), handler)

    assert executions == 3


async def test_cancelled_statement_is_the_deadline_once_the_budget_is_used_up(
    notes: PostgresNotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fail(notes, "57014")
    with Context(name="x", deadline=time.monotonic() + 60, traceparent=""):
        early = await error_of(notes, "early")
        monkeypatch.setattr(Context, "remaining", 0.0)
        late = await error_of(notes, "late")

    assert isinstance(early, ServiceError)
    assert isinstance(late, ServiceError)
    assert (early.reason, late.reason) == ("DATABASE_UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert late.outcome == Outcome.NO_EFFECT
