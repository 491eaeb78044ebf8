"""The database of `users`: migrations in both directions, and the query plans."""

import subprocess
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import SQLModel

from postbus.users.v1 import ListFollowersRequest, SearchUsersRequest
from shared.access_tokens import Caller
from shared.context import Context
from shared.data.pages import Page, Pages
from shared.data.postgres_connections import create_engine
from shared.data.postgres_sessions import Postgres
from tests.users.conftest import migrated
from tools.paths import ROOT
from users.account_repository import AccountRepository
from users.follow_repository import FollowRepository
from users.models import User
from users.refresh_tokens import RefreshToken
from users.session_repository import SessionRepository
from users.throttle import LoginThrottle

NOW = datetime.now(UTC)


def run_migrate(url: str, *arguments: str) -> None:
    """Run the command `migrate` of the worker."""
    environment = {
        "POSTBUS_AMQP_URL": "amqp://u:p@nowhere",
        "POSTBUS_POSTGRES_URL": url,
        "POSTBUS_SIGNING_KEY": "none",
        "POSTBUS_VERIFICATION_KEYS": "none",
        "POSTBUS_PAGE_TOKEN_KEY": "none",
    }
    command = [str(ROOT / "users/.venv/bin/python"), "-m", "users", "migrate", *arguments]
    subprocess.run(command, env=environment, check=True, timeout=60)


async def test_accounts_of_the_first_version_stay_through_both_ways(url: str) -> None:
    await migrated(url)
    await migrated(url, "0002")
    database = await asyncpg.connect(url)
    row = ("id", "Ada_B", "a@example.com", "hash", NOW)
    await database.execute("INSERT INTO users VALUES ($1, $2, $3, $4, $5)", *row)
    run_migrate(url)
    new = await database.fetchrow(
        "SELECT search, version, follower_count, updated_at FROM users WHERE id = 'id'"
    )
    await database.execute("UPDATE users SET username = repeat('x', 40)")
    run_migrate(url, "0002")
    old = await database.fetchrow("SELECT * FROM users")
    await database.close()

    assert tuple(new) == ("ada b", 1, 0, NOW)
    assert len(old) == 5
    assert old["username"].startswith("xxxxx")
    assert len(old["username"]) <= 30


async def test_migrated_schema_equals_the_models(url: str) -> None:
    await migrated(url)
    engine = create_engine(SecretStr(url))

    def differences(connection: sa.Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found = compare_metadata(context, SQLModel.metadata)
        return [each for each in found if "inbox" not in str(each) and "box" not in str(each)]

    async with engine.connect() as connection:
        found = await connection.run_sync(differences)
    await engine.dispose()

    ours = {"users", "sessions", "follows", "login_failures"}
    assert [each for each in found if any(name in str(each) for name in ours)] == []


async def test_accounts_survive_downgrade_and_upgrade(url: str) -> None:
    await migrated(url)
    database = await asyncpg.connect(url)
    await database.execute(
        "INSERT INTO users (id, username, email, password_hash, display_name, bio, image_url,"
        " search, follower_count, following_count, created_at, updated_at, version)"
        " VALUES ('id', 'ada', 'a@example.com', 'hash', '', '', '', 'ada', 0, 0, now(), now(), 1)"
    )
    await database.execute(
        "INSERT INTO sessions VALUES ('s', 'id', '', 'f', 's', now(), now(), now(), 'answer')"
    )
    await database.execute("INSERT INTO login_failures VALUES ('k', 2.5, now())")
    versions = [await database.fetchval("SELECT password_version FROM users")]
    await migrated(url, "0003")
    failures = await database.fetchval("SELECT count(*) FROM login_failures")
    await migrated(url)
    versions.append(await database.fetchval("SELECT password_version FROM users"))
    stored = await database.fetchval("SELECT answer FROM sessions")
    await database.close()

    assert versions == [1, 1]
    assert failures == 0
    assert stored is None


class RecordedStatements:
    """The statements that were sent, with their parameters."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.statements: list[tuple[str, Any]] = []
        sa.event.listen(engine.sync_engine, "before_cursor_execute", self._record)

    def _record(
        self, _c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
    ) -> None:
        if not statement.startswith("INSERT"):
            self.statements.append((statement, parameters[0] if many else parameters))


@pytest.fixture
async def recorded(url: str) -> AsyncIterator[tuple[AsyncEngine, RecordedStatements]]:
    await migrated(url)
    engine = create_engine(SecretStr(url))
    yield engine, RecordedStatements(engine)
    await engine.dispose()


def a_page(kind: type[Any], *after: str) -> Page:
    pages = Pages(SecretStr("key"))
    return pages.of(kind(page_token=pages.of(kind()).token(after) if after else ""))


def account(name: str) -> User:
    return User(
        id=name,
        username=name,
        email=f"{name}@example.com",
        password_hash="hash",  # noqa: S106  # no password
        search=name,
        created_at=NOW,
        updated_at=NOW,
    )


async def run_every_query(postgres: Postgres) -> None:
    """Make every query that the handlers make."""
    users, sessions = AccountRepository(postgres), SessionRepository(postgres)
    follows, throttle = FollowRepository(postgres), LoginThrottle(postgres, 50)
    for name in ("ann", "bea"):
        await users.add(account(name))
    ann = await users.find_by_username("ann")
    assert ann is not None
    await users.find_by_login("ann@example.com")
    await users.require_free("cyd")
    await users.replace_hash(ann, "hash")
    await users.get_many(["ann", "bea"])
    for q in ("", "an b"):
        for page in (a_page(SearchUsersRequest), a_page(SearchUsersRequest, "ann")):
            await users.search(q, page)
    await users.count("an b")
    await users.update(ann, {"bio": "new"})
    await users.reload(ann)
    token = RefreshToken.new()
    await sessions.open(ann, "", token)
    await sessions.find_by_token(token, time.monotonic())
    await sessions.rotate(token, token.next(), sealed_response=b"sealed")
    await sessions.purge_responses()
    caller = Caller(user_id="ann", session_id=token.session_id, expires_at=NOW)
    context = Context(name="", caller=caller, deadline=0, traceparent="")
    await sessions.require_recent(context)
    await users.get_caller(context)
    await users.get_caller(context, lock=True)
    await sessions.list_open("ann", a_page(SearchUsersRequest))
    await sessions.list_open("ann", a_page(SearchUsersRequest, "x"))
    await sessions.count_open("ann")
    await sessions.delete_surplus("ann")
    await sessions.delete("ann", only="x")
    await sessions.delete("ann", keep="x")
    await follows.add("ann", "bea")
    for page in (a_page(ListFollowersRequest), a_page(ListFollowersRequest, NOW.isoformat(), "x")):
        await follows.list_followers("bea", page)
        await follows.list_following("ann", page)
    await follows.followed_among("ann", ["bea"])
    await follows.followed_ids("ann")
    await follows.remove("ann", "bea")
    await follows.add("ann", "bea")
    await follows.erase_batch("ann")
    attempt = throttle.of_unknown_device("ann", "192.0.2.1")
    await throttle.record_attempt(attempt)
    await throttle.reset(attempt)
    await throttle.purge()
    await users.delete("ann")


async def test_every_query_uses_an_index(recorded: tuple[AsyncEngine, RecordedStatements]) -> None:
    engine, recording = recorded
    await run_every_query(Postgres(engine))
    statements, faults = list(recording.statements), []

    async with engine.connect() as connection:
        await connection.exec_driver_sql("SET enable_seqscan = off")
        for statement, parameters in statements:
            plan = await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
            lines = "\n".join(row[0] for row in plan)
            if "Seq Scan" in lines:
                faults.append((statement, lines))

    assert faults == []
    assert len(statements) > 40


async def test_total_of_users_is_counted_up_to_a_bound(
    recorded: tuple[AsyncEngine, RecordedStatements], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, recording = recorded
    users = AccountRepository(Postgres(engine))
    for name in ("ann", "bea", "cat"):
        await users.add(account(name))
    assert (await users.count(""), await users.count("be")) == (3, 1)
    assert 50_001 in recording.statements[-1][1]
    await users.search("be", a_page(SearchUsersRequest))
    assert 2001 in recording.statements[-2][1]  # more matches are not sorted
    monkeypatch.setattr("users.account_repository.COUNTED", 1)

    assert (await users.count(""), await users.count("be")) == (None, 1)
    statement, parameters = recording.statements[-1]
    assert "LIMIT" in statement
    assert 2 in parameters
