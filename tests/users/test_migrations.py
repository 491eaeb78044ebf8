"""Migrations that run at once, beside readers, or not yet."""

import asyncio
import time
from typing import Any

import asyncpg
import httpx
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from pydantic import SecretStr

from shared.data import alembic_migrations
from shared.data.postgres_readiness import newest_revision, postgres_probe
from shared.data.postgres_sessions import open_postgres
from shared.errors import NotReadyError, ServiceError
from tests.people import eventually
from tests.users.conftest import MIGRATIONS, migrated
from tools.paths import ROOT


async def fetch(url: str, query: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


STARTER = """
import sys
from pydantic import SecretStr
from shared.data.alembic_migrations import migrate
import users.models

print("ready", flush=True)
for url in sys.argv[1:]:
    sys.stdin.readline()
    migrate(SecretStr(url), "users:migrations")
    print("migrated", flush=True)
"""


async def three_at_once(*urls: str) -> list[int | None]:
    """Migrate each database in three processes at once; return their exit codes."""
    starters = [
        await asyncio.create_subprocess_exec(
            *(str(ROOT / "users/.venv/bin/python"), "-c", STARTER, *urls),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(3)
    ]
    pipes = [(each.stdin, each.stdout) for each in starters if each.stdin and each.stdout]
    for _ in (*urls, "end"):
        await asyncio.gather(*(output.readline() for _, output in pipes))
        for given, _ in pipes:
            given.write(b"\n")
    return await asyncio.gather(*(each.wait() for each in starters))


async def old_database(url: str, revision: str) -> str:
    await migrated(url)
    return await migrated(url, revision)


async def test_three_migrations_at_once_succeed_on_missing_empty_and_old_databases(
    url: str, postgres_url: str
) -> None:
    missing, empty, old = f"{url}_missing", f"{url}_empty", await old_database(url, "0001")
    server = str(httpx.URL(postgres_url).copy_with(path="/postgres"))
    await fetch(server, f'CREATE DATABASE "{empty.rpartition("/")[2]}"')
    rows = "SELECT n, n, n, 'hash', now() FROM generate_series(1, 3000) AS n"
    await fetch(old, f"INSERT INTO users {rows}")  # constants

    assert await three_at_once(missing, empty, old) == [0, 0, 0]

    for each in (missing, empty, old):
        revision = await fetch(each, "SELECT version_num FROM alembic_version")
        assert revision == newest_revision(MIGRATIONS)
    assert await fetch(old, "SELECT count(*) FROM users WHERE search <> ''") == 3000


async def test_migration_that_waits_for_a_table_lets_readers_pass(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (alembic_migrations._LOCK_TIMEOUT, alembic_migrations._LOCK_TRIES) == ("3s", 20)
    assert alembic_migrations._LOCK_PAUSE == 2
    monkeypatch.setattr(alembic_migrations, "_LOCK_TIMEOUT", "500ms")
    monkeypatch.setattr(alembic_migrations, "_LOCK_PAUSE", 0.1)
    await old_database(url, "0002")
    holder, reader = await asyncpg.connect(url), await asyncpg.connect(url)
    held = holder.transaction()
    await held.start()
    await holder.fetch("SELECT FROM users")
    migration = asyncio.create_task(migrated(url))

    async def waits() -> bool:
        query = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation IS NOT NULL)"
        return bool(await holder.fetchval(query))

    waited = []
    for _ in range(2):  # also after the first try
        await eventually(waits)
        began = time.monotonic()
        await reader.fetch("SELECT FROM users")
        waited.append(time.monotonic() - began)
    await held.commit()
    await migration
    await holder.close()
    await reader.close()

    assert max(waited) < 3  # half a second, and the slowness of a busy machine
    assert await fetch(url, "SELECT version_num FROM alembic_version") == newest_revision(
        MIGRATIONS
    )


async def test_migration_gives_up_a_locked_table_with_a_message(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alembic_migrations, "_LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr(alembic_migrations, "_LOCK_PAUSE", 0)
    monkeypatch.setattr(alembic_migrations, "_LOCK_TRIES", 2)
    await old_database(url, "0002")
    holder = await asyncpg.connect(url)
    async with holder.transaction():
        await holder.fetch("SELECT FROM users")
        with pytest.raises(SystemExit, match="keeps a table locked"):
            await migrated(url)
    await holder.close()

    assert await fetch(url, "SELECT version_num FROM alembic_version") == "0002"


async def test_newest_revision_leaves_every_column_and_adds_only_columns_with_a_default(
    url: str,
) -> None:
    """Workers of the previous release read and insert rows of the new schema."""
    await old_database(url, "-1")
    before = await columns(url)
    await migrated(url)
    after = await columns(url)

    assert after | before == after
    added = [after[name] for name in after.keys() - before.keys() if name[0] in tables(before)]
    assert all(nullable or default for _, nullable, default in added)


Columns = dict[tuple[str, str], tuple[str, bool, str | None]]


async def columns(url: str) -> Columns:
    """Return type, nullability and default by table and column."""
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        "SELECT table_name, column_name, data_type, is_nullable = 'YES', column_default"
        " FROM information_schema.columns WHERE table_schema = 'public'"
    )
    await connection.close()
    return {(table, name): tuple(rest) for table, name, *rest in rows}


def tables(of: Columns) -> set[str]:
    return {table for table, _ in of}


def test_names_of_the_scripts_begin_with_their_revisions() -> None:
    config = Config()
    config.set_main_option("script_location", MIGRATIONS)

    assert newest_revision(MIGRATIONS) == ScriptDirectory.from_config(config).get_current_head()


async def test_database_that_is_missing_or_old_is_not_ready_until_it_is_migrated(url: str) -> None:
    async with open_postgres(SecretStr(url)) as postgres:
        probe = postgres_probe(postgres, MIGRATIONS)

        async def missing() -> str:
            try:
                await probe()
            except NotReadyError as error:
                return str(error)
            except ServiceError as error:
                return str(error.__cause__)
            return ""

        texts = [await missing()]
        name = url.rpartition("/")[2]
        server = str(httpx.URL(url).copy_with(path="/postgres"))
        await fetch(server, f'CREATE DATABASE "{name}"')
        texts.append(await missing())
        await migrated(url)
        texts.append(await missing())
        await fetch(url, "UPDATE alembic_version SET version_num = '0004'")
        texts.append(await missing())
        await fetch(url, "UPDATE alembic_version SET version_num = '9999'")
        texts.append(await missing())

    assert "does not exist" in texts[0]
    assert all("python -m users migrate" in text for text in (*texts[:2], texts[3]))
    assert "0004" in texts[3]
    assert [texts[2], texts[4]] == ["", ""]
