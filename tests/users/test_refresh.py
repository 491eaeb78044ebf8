"""Refresh tokens: repetition after a lost response, concurrent calls and detection of reuse."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from postbus.bus.v1 import Outcome, Request
from postbus.users.v1 import (
    DeleteMeRequest,
    RefreshSessionRequest,
    RefreshSessionResponse,
    UpdateMeRequest,
)
from shared.bus import Call
from shared.bus.memory import MemoryBus
from shared.data.postgres_sessions import open_postgres
from shared.errors import ServiceError
from shared.wire import decode, encode
from tests.people import eventually
from tests.users.conftest import AUTH, Worker, reason
from users.__main__ import application
from users.refresh_tokens import RefreshToken
from users.sealed_responses import open_response, seal_response
from users.session_repository import SessionRepository
from users.settings import UsersSettings

Unique = Callable[[str], str]
USERS = "postbus.users.v1.UsersService"


@pytest.fixture
async def first(worker: Worker, unique: Unique) -> str:
    """Return the refresh token of a new session."""
    alice = unique("alice")
    await worker.sign_up(alice)
    return (await worker.log_in(alice)).refresh_token


@pytest.fixture
async def sessions(worker_database: str) -> AsyncIterator[SessionRepository]:
    async with open_postgres(SecretStr(worker_database)) as postgres:
        yield SessionRepository(postgres)


def session_of(token: str) -> str:
    read = RefreshToken.read(token)
    assert read is not None
    return read.session_id


async def age(worker: Worker, token: str, column: str, seconds: float) -> None:
    """Move a timestamp of the session back by `seconds`."""
    await worker.database.execute(
        f"UPDATE sessions SET {column} = {column} - make_interval(secs => $1) WHERE id = $2",  # noqa: S608  # a name of this file
        seconds,
        session_of(token),
    )


async def test_lost_response_is_repeated_for_the_same_token_and_key(
    worker: Worker, first: str, unique: Unique
) -> None:
    key = unique("key")
    request = RefreshSessionRequest(refresh_token=first)
    lost = await worker.refresh(first, operation_id=key)

    call = Call.new(encode(request), budget=5, operation_id=key)
    result = await worker.bus.call(f"{AUTH}.RefreshSession", call)
    again = decode(RefreshSessionResponse, result.payload)

    assert again == lost
    assert result.replayed
    assert await reason(worker.refresh(again.refresh_token)) == ""


async def test_repetition_after_use_of_the_next_token_counts_as_reuse(
    worker: Worker, first: str, unique: Unique
) -> None:
    key = unique("key")
    second = await worker.refresh(first, operation_id=key)
    third = await worker.refresh(second.refresh_token)

    stolen = await reason(worker.refresh(first, operation_id=key))

    assert stolen == "REFRESH_TOKEN_REUSED"
    assert await reason(worker.refresh(third.refresh_token)) == "REFRESH_TOKEN_INVALID"


@pytest.mark.parametrize("seconds", [50, 61])
async def test_response_is_repeated_for_a_minute_by_the_clock_of_the_database(
    seconds: int, worker: Worker, first: str, unique: Unique
) -> None:
    key = unique("key")
    second = await worker.refresh(first, operation_id=key)
    await age(worker, first, "refreshed_at", seconds)

    again = await reason(worker.refresh(first, operation_id=key))

    assert again == ("" if seconds < 60 else "REFRESH_TOKEN_REUSED")
    ended = await reason(worker.refresh(second.refresh_token))
    assert ended == ("" if seconds < 60 else "REFRESH_TOKEN_INVALID")


async def test_repetition_after_the_end_of_the_session_is_refused(
    worker: Worker, first: str, unique: Unique
) -> None:
    key = unique("key")
    await worker.refresh(first, operation_id=key)
    await worker.database.execute("DELETE FROM sessions WHERE id = $1", session_of(first))

    assert await reason(worker.refresh(first, operation_id=key)) == "REFRESH_TOKEN_INVALID"


@pytest.mark.parametrize("sent", [0, 1, 2**62])
async def test_time_sent_by_the_caller_does_not_affect_reuse_detection(
    sent: int, worker: Worker, first: str
) -> None:
    second = await worker.refresh(first)
    call = Call.new(encode(RefreshSessionRequest(refresh_token=first)), budget=5)
    request = decode(Request, call.request)
    request.sent_unix_ms = sent

    stolen = Call(encode(request), call.deadline)

    assert await reason(worker.bus.call(f"{AUTH}.RefreshSession", stolen)) == "REFRESH_TOKEN_REUSED"
    assert await reason(worker.refresh(second.refresh_token)) == "REFRESH_TOKEN_INVALID"


async def test_end_of_the_session_of_a_reused_token_is_an_effect(
    worker: Worker, first: str
) -> None:
    await worker.refresh(first)

    with pytest.raises(ServiceError, match="REFRESH_TOKEN_REUSED") as raised:
        await worker.refresh(first)

    assert raised.value.outcome == Outcome.UNKNOWN


async def until_blocked(worker: Worker, calls: int) -> None:
    """Wait until this number of calls waits for a lock of the database."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )

    async def waiting() -> bool:
        return bool(await worker.database.fetchval(query) >= calls)

    await eventually(waiting)


async def test_one_of_two_concurrent_refreshes_succeeds_and_the_session_stays_open(
    worker: Worker, first: str
) -> None:
    async with worker.database.transaction():
        locked = "SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE"
        await worker.database.execute(locked, session_of(first))
        calls = [asyncio.create_task(worker.refresh(first)) for _ in range(2)]
        await until_blocked(worker, 2)
    results = await asyncio.gather(*calls, return_exceptions=True)

    [response] = [each for each in results if isinstance(each, RefreshSessionResponse)]
    [error] = [each for each in results if isinstance(each, ServiceError)]
    assert error.reason == "REFRESHED_MEANWHILE"
    assert await reason(worker.refresh(response.refresh_token)) == ""


@pytest.mark.parametrize("same_key", [False, True])
async def test_call_that_began_before_the_exchange_keeps_the_session_open(
    same_key: bool, worker: Worker, first: str, unique: Unique
) -> None:
    old, key = RefreshToken.read(first), unique("key")
    assert old is not None
    response = RefreshSessionResponse(session_id=old.session_id)
    answer = seal_response(encode(response), old, key if same_key else unique("another"))
    async with worker.database.transaction():
        await worker.database.execute(
            "UPDATE sessions SET secret_hash = $1, answer = $2, refreshed_at = clock_timestamp()"
            " WHERE id = $3",
            old.next().secret_hash,
            answer,
            old.session_id,
        )
        call = asyncio.create_task(worker.refresh(first, operation_id=key))
        await until_blocked(worker, 1)

    if same_key:
        assert await call == response
    else:
        assert await reason(call) == "REFRESHED_MEANWHILE"


async def test_wait_for_a_connection_does_not_turn_a_concurrent_refresh_into_reuse(
    worker: Worker, first: str, sessions: SessionRepository
) -> None:
    old, began = RefreshToken.read(first), time.monotonic()
    assert old is not None
    await worker.refresh(first)

    before = await sessions.find_by_token(old, began)
    after = await sessions.find_by_token(old, time.monotonic())

    assert before is not None
    assert after is not None
    assert (before.current, before.exchanged_during_call) == (False, True)
    assert (after.current, after.exchanged_during_call) == (False, False)


def test_response_is_sealed_for_one_token_and_one_key() -> None:
    token = RefreshToken.new()
    sealed = seal_response(b"tokens", token, "key")

    assert b"tokens" not in sealed
    assert open_response(sealed, token, "key") == b"tokens"
    for other, key in ((token, "another"), (token.next(), "key"), (RefreshToken.new(), "key")):
        assert open_response(sealed, other, key) is None


async def test_old_sealed_responses_are_purged_and_recent_ones_kept(
    worker: Worker, first: str, unique: Unique, sessions: SessionRepository
) -> None:
    alice = unique("alice")
    await worker.sign_up(alice)
    recent = (await worker.log_in(alice)).refresh_token
    for token in (first, recent):
        await worker.refresh(token)
    await age(worker, first, "refreshed_at", 61)

    await sessions.purge_responses()

    stored = "SELECT answer IS NOT NULL FROM sessions WHERE id = $1"
    assert await worker.database.fetchval(stored, session_of(first)) is False
    assert await worker.database.fetchval(stored, session_of(recent)) is True


async def test_purge_leaves_the_response_of_a_session_that_a_call_has_locked(
    worker: Worker, first: str, sessions: SessionRepository
) -> None:
    await worker.refresh(first)
    await age(worker, first, "refreshed_at", 61)

    async with worker.database.transaction(), asyncio.timeout(10):
        locked = "SELECT FROM sessions WHERE id = $1 FOR UPDATE"
        await worker.database.execute(locked, session_of(first))
        await sessions.purge_responses()

    stored = "SELECT answer IS NOT NULL FROM sessions WHERE id = $1"
    assert await worker.database.fetchval(stored, session_of(first)) is True


async def test_worker_purges_expired_rows_periodically(
    settings: UsersSettings, worker: Worker, first: str, unique: Unique
) -> None:
    await worker.refresh(first)
    await age(worker, first, "refreshed_at", 61)
    old = unique("old")
    await worker.database.execute(
        "INSERT INTO login_failures VALUES ($1, 1, now() - interval '2 h')", old
    )
    left = (
        "SELECT (SELECT answer FROM sessions WHERE id = $1) IS NULL"
        " AND NOT EXISTS (SELECT FROM login_failures WHERE login_hash = $2)"
    )

    async def purged() -> bool:
        return bool(await worker.database.fetchval(left, session_of(first), old))

    async with application(settings, MemoryBus()):
        await eventually(purged)


async def test_session_ends_after_180_days_however_often_it_is_refreshed(
    worker: Worker, first: str
) -> None:
    await age(worker, first, "created_at", timedelta(days=179).total_seconds())

    second = await worker.refresh(first)

    assert second.refresh_expires_at is not None
    left = second.refresh_expires_at - datetime.now(UTC)
    assert timedelta(hours=23) < left < timedelta(days=1)
    stored = "SELECT expires_at FROM sessions WHERE id = $1"
    assert await worker.database.fetchval(stored, session_of(first)) == second.refresh_expires_at


@pytest.mark.parametrize("minutes", [14, 16])
async def test_sensitive_changes_need_a_recent_log_in(
    minutes: int, worker: Worker, unique: Unique
) -> None:
    alice = unique("alice")
    await worker.sign_up(alice)
    session = await worker.log_in(alice)
    await age(worker, session.refresh_token, "created_at", minutes * 60)
    token, expected = session.access_token, "" if minutes < 15 else "RECENT_LOGIN_REQUIRED"

    async def change(path: str, value: str) -> str:
        request = UpdateMeRequest()
        setattr(request, path, value)
        request.update_mask.paths = [path]
        return await reason(worker.call(f"{USERS}.UpdateMe", request, access_token=token))

    assert await change("bio", "new") == ""
    assert await change("username", unique("new")) == expected
    assert await change("email", f"{unique('new')}@example.com") == expected
    deleted = worker.payload(f"{USERS}.DeleteMe", DeleteMeRequest(), access_token=token)
    assert await reason(deleted) == expected
