"""The log-in throttle: back-off, decay of counts, bound of rows; and the security log."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import asyncpg
import pytest
from pydantic import SecretStr

from postbus import reasons
from shared.data.postgres_sessions import Postgres, open_postgres
from shared.errors import ServiceError
from shared.outbox.inbox import Operation
from tests.users.conftest import connected, until_waiting
from users import periodic_purge as periodic_module
from users import throttle as module
from users.throttle import Allowance, Attempt, LoginThrottle, Streak

Unique = Callable[[str], str]
COUNT_BATCHES = """
CREATE TABLE purged (deleted bigint);
CREATE FUNCTION count_purged() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO purged SELECT count(*) FROM deleted; RETURN NULL; END $$;
CREATE TRIGGER purged AFTER DELETE ON login_failures REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION count_purged();
"""
"""Records how many rows each statement deletes."""


SELECT = "SELECT count FROM login_failures WHERE login_hash = $1"


@pytest.fixture
async def postgres(worker_database: str) -> AsyncIterator[Postgres]:
    async with open_postgres(SecretStr(worker_database)) as opened:
        yield opened


def test_back_off_doubles_with_each_failure_up_to_a_minute() -> None:
    rule = Streak(free=5)

    waits = [rule.wait(count, 0) for count in (0, 4, 5, 6, 7, 11, 1000, 100_000)]
    assert waits == [0, 0, 1, 2, 4, 60, 60, 60]
    assert rule.wait(5, 1) <= 0
    assert (rule.decay(7, 899), rule.decay(7, 901)) == (7, 0)
    assert rule.after_success(7) == 0


def test_allowance_decreases_over_time_and_with_each_success() -> None:
    rule = Allowance(free=50, seconds=12)

    assert [rule.wait(count, 0) for count in (0, 49, 50, 51)] == [-588, 0, 12, 24]
    assert (rule.decay(10, 30), rule.decay(1, 600)) == (7.5, 0)
    assert (rule.after_success(7), rule.after_success(0.5)) == (6, 0)


async def test_address_is_allowed_one_more_failure_every_12_seconds(
    postgres: Postgres, unique: Unique
) -> None:
    attempt = LoginThrottle(postgres, 3).of_unknown_device(unique("account"), "192.0.2.78")

    rules = set(attempt.rules.values())

    assert rules == {Streak(free=5), Allowance(free=100, seconds=36), Allowance(free=3, seconds=12)}


async def test_successful_log_ins_do_not_count_for_the_address(
    postgres: Postgres, unique: Unique
) -> None:
    throttle = LoginThrottle(postgres, 3)
    attempt = throttle.of_unknown_device(unique("account"), "192.0.2.77")

    for _ in range(5):
        await throttle.record_attempt(attempt)
        await throttle.reset(attempt)
    for _ in range(3):
        await throttle.record_attempt(throttle.of_unknown_device(unique("account"), "192.0.2.77"))
    with pytest.raises(ServiceError, match="LOGIN_THROTTLED"):
        await throttle.record_attempt(attempt)


async def test_rows_are_purged_by_time_and_bounded_in_number(
    postgres: Postgres, worker_database: str, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await asyncpg.connect(worker_database)
    assert (module._MAX_ROWS, module._PURGE_BATCH) == (100_000, 10_000)
    monkeypatch.setattr(module, "_MAX_ROWS", 1000)
    monkeypatch.setattr(module, "_PURGE_BATCH", 500)
    await database.execute("DELETE FROM login_failures")
    await database.execute(
        "INSERT INTO login_failures SELECT 'few' || n, 1, now() - n * interval '59 min'"
        " FROM generate_series(0, 2) n"
    )
    await LoginThrottle(postgres, 50).purge()
    few = "SELECT array_agg(login_hash ORDER BY 1) FROM login_failures"
    assert await database.fetchval(few) == ["few0", "few1"]
    for prefix, count, age in (("old", 1200, "61 min"), ("new", 2500, "1 min"), ("now", 900, "0")):
        await database.execute(
            "INSERT INTO login_failures SELECT $1 || n, 1, now() - $2::text::interval"
            " - n * interval '1 ms' FROM generate_series(1, $3) n",
            unique(prefix),
            age,
            count,
        )

    await database.execute(COUNT_BATCHES)
    try:
        await LoginThrottle(postgres, 50).purge()
        batches = await database.fetch("SELECT deleted FROM purged")
    finally:
        await database.execute("DROP FUNCTION count_purged CASCADE; DROP TABLE purged")

    assert max(each["deleted"] for each in batches) == 500
    old = "SELECT count(*) FROM login_failures WHERE last_at < now() - interval '1 h'"
    assert await database.fetchval(old) == 0
    assert await database.fetchval("SELECT count(*) FROM login_failures") == 1000
    kept = "SELECT count(*) FROM login_failures WHERE login_hash LIKE 'now%'"
    assert await database.fetchval(kept) == 900
    await database.execute("DELETE FROM login_failures")
    await database.close()


async def test_purge_leaves_a_row_that_a_log_in_has_locked(
    postgres: Postgres, worker_database: str, unique: Unique
) -> None:
    locked, free = unique("locked"), unique("free")
    async with connected(worker_database) as database:
        await database.execute(
            "INSERT INTO login_failures SELECT unnest($1::text[]), 1, now() - interval '2 h'",
            [locked, free],
        )
        async with database.transaction(), asyncio.timeout(10):
            await database.execute(f"{SELECT} FOR UPDATE", locked)
            await LoginThrottle(postgres, 50).purge()

        assert await database.fetchval(SELECT, free) is None
        assert await database.fetchval(SELECT, locked) == 1


async def test_attempts_lock_their_counts_in_one_order(
    postgres: Postgres, worker_database: str, unique: Unique
) -> None:
    throttle, prefix = LoginThrottle(postgres, 0), unique("key")
    first, middle, last = (f"{prefix}{name}" for name in ("a", "b", "c"))
    attempts = [
        Attempt(dict.fromkeys(keys, Allowance(free=100, seconds=36)))
        for keys in ((first, middle, last), (last, middle, first))
    ]
    await throttle.record_attempt(attempts[0])

    async with connected(worker_database) as database:
        held = database.transaction()
        await held.start()
        await database.execute(f"{SELECT} FOR UPDATE", middle)
        running = [asyncio.create_task(throttle.record_attempt(each)) for each in attempts]
        await until_waiting(worker_database, 2)
        await held.rollback()
        await asyncio.gather(*running)

        assert await database.fetchval(SELECT, middle) == pytest.approx(3, abs=0.5)


async def test_success_keeps_a_concurrent_failure(
    postgres: Postgres, worker_database: str, unique: Unique
) -> None:
    throttle, key = LoginThrottle(postgres, 0), unique("key")
    attempt = Attempt({key: Allowance(free=100, seconds=36)})
    await throttle.record_attempt(attempt)

    async with connected(worker_database) as database:
        failure = database.transaction()
        await failure.start()
        await database.execute("UPDATE login_failures SET count = 8 WHERE login_hash = $1", key)
        success = asyncio.create_task(throttle.reset(attempt))
        await until_waiting(worker_database, 1)
        await failure.commit()
        await success

        assert await database.fetchval(SELECT, key) == 7


async def test_failures_of_some_time_ago_do_not_count(
    postgres: Postgres, worker_database: str, unique: Unique
) -> None:
    throttle, key = LoginThrottle(postgres, 0), unique("key")
    attempt = Attempt({key: Allowance(free=3, seconds=12)})
    for _ in range(3):
        await throttle.record_attempt(attempt)
    with pytest.raises(ServiceError, match="LOGIN_THROTTLED"):
        await throttle.record_attempt(attempt)

    async with connected(worker_database) as database:
        earlier = "UPDATE login_failures SET last_at = last_at - interval '13 s'"
        await database.execute(f"{earlier} WHERE login_hash = $1", key)

    await throttle.record_attempt(attempt)


async def test_keys_of_counts_are_hashes_of_delimited_parts(postgres: Postgres) -> None:
    throttle = LoginThrottle(postgres, 0)
    keys = throttle.of_unknown_device("name ann", "192.0.2.1").rules.keys()
    similar = throttle.of_unknown_device("name ann1", "92.0.2.1").rules.keys()

    assert not keys & similar
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in keys | similar)


async def test_clients_without_an_address_have_no_common_count(postgres: Postgres) -> None:
    attempt = LoginThrottle(postgres, 3).of_unknown_device("name ann", "")

    assert set(attempt.rules.values()) == {Streak(free=5), Allowance(free=100, seconds=36)}


async def test_attempt_counts_before_its_result_is_known(
    postgres: Postgres, unique: Unique
) -> None:
    throttle = LoginThrottle(postgres, 0)
    attempt = throttle.of_unknown_device(unique("account"), "192.0.2.79")

    attempts = (throttle.record_attempt(attempt) for _ in range(20))
    results = await asyncio.gather(*attempts, return_exceptions=True)

    refused = [each for each in results if isinstance(each, ServiceError)]
    assert len(refused) == 15
    assert all(each.retry_after and 0 < each.retry_after <= 1 for each in refused)


async def test_attempt_counts_even_if_its_call_fails(postgres: Postgres, unique: Unique) -> None:
    throttle = LoginThrottle(postgres, 0)
    account = unique("account")

    async def attempt() -> bytes:
        await throttle.record_attempt(throttle.of_unknown_device(account, "192.0.2.80"))
        raise ServiceError(reasons.WRONG_CREDENTIALS, "Wrong.")

    raised_reasons = []
    for _ in range(6):
        with pytest.raises(ServiceError) as raised:
            await postgres.perform(Operation(key=unique("key")), attempt)
        raised_reasons.append(raised.value.reason)

    assert raised_reasons == ["WRONG_CREDENTIALS"] * 5 + ["LOGIN_THROTTLED"]


async def test_address_is_unlimited_if_the_setting_is_zero(
    postgres: Postgres, unique: Unique
) -> None:
    attempt = LoginThrottle(postgres, 0).of_unknown_device(unique("account"), "192.0.2.81")

    assert set(attempt.rules.values()) == {Streak(free=5), Allowance(free=100, seconds=36)}


async def test_purges_repeat_about_once_a_minute_whatever_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs, sleeps, enough = list[str](), list[float](), asyncio.Event()
    skip = asyncio.sleep

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 5:
            enough.set()
        await skip(0)

    async def fail() -> None:
        runs.append("fails")
        raise RuntimeError("unforeseen")

    async def succeed() -> None:
        runs.append("succeeds")

    hurried = SimpleNamespace(**{**vars(asyncio), "sleep": sleep})
    monkeypatch.setattr(periodic_module, "asyncio", hurried)
    async with periodic_module.periodic_purge(fail, succeed), asyncio.timeout(5):
        await enough.wait()

    assert all(30 <= seconds <= 60 for seconds in sleeps)
    assert len(set(sleeps)) > 1  # so that the purges of several processes are spread
    assert runs[:4] == ["fails", "succeeds"] * 2
