"""Refresh tokens: a lost answer, two calls at once, and theft, by the server's own order."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from postbus.bus.v1 import Request
from postbus.users.v1 import (
    DeleteMeRequest,
    RefreshSessionRequest,
    RefreshSessionResponse,
    UpdateMeRequest,
)
from shared.bus import Call
from shared.data.postgres_sessions import open_postgres
from shared.errors import ServiceError
from shared.wire import decode, encode
from tests.people import eventually
from tests.users.conftest import AUTH, Worker, reason
from users.__main__ import application
from users.refresh_answers import open_answer, seal_answer
from users.refresh_tokens import RefreshToken
from users.sessions import SessionRepository
from users.settings import UsersSettings

Unique = Callable[[str], str]
USERS = "postbus.users.v1.UsersService"


@pytest.fixture
async def first(worker: Worker, unique: Unique) -> str:
    """The refresh token of a new session."""
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
    """Make something of the session as old as if so much time had passed."""
    await worker.database.execute(
        f"UPDATE sessions SET {column} = {column} - make_interval(secs => $1) WHERE id = $2",  # noqa: S608  # a name of this file
        seconds,
        session_of(token),
    )


async def test_lost_answer_is_repeated_for_the_same_token_and_key(
    worker: Worker, first: str, unique: Unique
) -> None:
    key = unique("key")
    request = RefreshSessionRequest(refresh_token=first)
    lost = await worker.refresh(first, operation_id=key)

    call = Call.new(encode(request), deadline=time.time() + 5, operation_id=key)
    result = await worker.bus.call(f"{AUTH}.RefreshSession", call)
    again = decode(RefreshSessionResponse, result.payload)

    assert again == lost
    assert result.replayed
    assert await reason(worker.refresh(again.refresh_token)) == ""


async def test_repetition_after_the_successor_was_used_is_theft(
    worker: Worker, first: str, unique: Unique
) -> None:
    key = unique("key")
    second = await worker.refresh(first, operation_id=key)
    third = await worker.refresh(second.refresh_token)

    stolen = await reason(worker.refresh(first, operation_id=key))

    assert stolen == "REFRESH_TOKEN_REUSED"
    assert await reason(worker.refresh(third.refresh_token)) == "REFRESH_TOKEN_INVALID"


@pytest.mark.parametrize("seconds", [50, 61])
async def test_answer_is_repeated_for_a_minute_by_the_clock_of_the_database(
    seconds: int, worker: Worker, first: str, unique: Unique
) -> None:
    key = unique("key")
    second = await worker.refresh(first, operation_id=key)
    await age(worker, first, "refreshed_at", seconds)

    again = await reason(worker.refresh(first, operation_id=key))

    assert again == ("" if seconds < 60 else "REFRESH_TOKEN_REUSED")
    ended = await reason(worker.refresh(second.refresh_token))
    assert ended == ("" if seconds < 60 else "REFRESH_TOKEN_INVALID")


async def test_repetition_after_the_session_has_ended_gets_nothing(
    worker: Worker, first: str, unique: Unique
) -> None:
    key = unique("key")
    await worker.refresh(first, operation_id=key)
    await worker.database.execute("DELETE FROM sessions WHERE id = $1", session_of(first))

    assert await reason(worker.refresh(first, operation_id=key)) == "REFRESH_TOKEN_INVALID"


@pytest.mark.parametrize("sent", [0, 1, 2**62])
async def test_no_time_of_the_caller_decides_about_theft(
    sent: int, worker: Worker, first: str
) -> None:
    second = await worker.refresh(first)
    call = Call.new(encode(RefreshSessionRequest(refresh_token=first)), deadline=time.time() + 5)
    request = decode(Request, call.request)
    request.sent_unix_ms = sent

    stolen = Call(encode(request), call.deadline)

    assert await reason(worker.bus.call(f"{AUTH}.RefreshSession", stolen)) == "REFRESH_TOKEN_REUSED"
    assert await reason(worker.refresh(second.refresh_token)) == "REFRESH_TOKEN_INVALID"


async def until_blocked(worker: Worker, calls: int) -> None:
    """Wait until so many calls wait for a lock of the database."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )

    async def waiting() -> bool:
        return bool(await worker.database.fetchval(query) >= calls)

    await eventually(waiting)


async def test_refreshes_at_the_same_moment_give_one_new_token_and_one_harmless_refusal(
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
async def test_call_that_began_before_another_worker_has_committed_is_harmless(
    same_key: bool, worker: Worker, first: str, unique: Unique
) -> None:
    old, key = RefreshToken.read(first), unique("key")
    assert old is not None
    response = RefreshSessionResponse(session_id=old.session_id)
    answer = seal_answer(encode(response), old, key if same_key else unique("another"))
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


async def test_call_that_waited_for_a_connection_counts_from_when_it_began(
    worker: Worker, first: str, sessions: SessionRepository
) -> None:
    old, began = RefreshToken.read(first), time.monotonic()
    assert old is not None
    await worker.refresh(first)

    before = await sessions.of_token(old, began)
    after = await sessions.of_token(old, time.monotonic())

    assert before is not None
    assert after is not None
    assert (before.current, before.meanwhile) == (False, True)
    assert (after.current, after.meanwhile) == (False, False)


def test_answer_is_sealed_for_one_token_and_one_key() -> None:
    token = RefreshToken.new()
    sealed = seal_answer(b"tokens", token, "key")

    assert b"tokens" not in sealed
    assert open_answer(sealed, token, "key") == b"tokens"
    for other, key in ((token, "another"), (token.next(), "key"), (RefreshToken.new(), "key")):
        assert open_answer(sealed, other, key) is None


async def test_old_answers_are_purged_and_recent_ones_kept(
    worker: Worker, first: str, unique: Unique, sessions: SessionRepository
) -> None:
    alice = unique("alice")
    await worker.sign_up(alice)
    recent = (await worker.log_in(alice)).refresh_token
    for token in (first, recent):
        await worker.refresh(token)
    await age(worker, first, "refreshed_at", 61)

    await sessions.purge_answers()

    stored = "SELECT answer IS NOT NULL FROM sessions WHERE id = $1"
    assert await worker.database.fetchval(stored, session_of(first)) is False
    assert await worker.database.fetchval(stored, session_of(recent)) is True


async def test_worker_purges_without_being_called(
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

    async with application(settings):
        await eventually(purged)


async def test_session_ends_after_180_days_however_often_it_is_refreshed(
    worker: Worker, first: str
) -> None:
    await age(worker, first, "created_at", timedelta(days=179).total_seconds())

    second = await worker.refresh(first)

    left = second.refresh_expires_at - datetime.now(UTC)
    assert timedelta(hours=23) < left < timedelta(days=1)
    stored = "SELECT expires_at FROM sessions WHERE id = $1"
    assert await worker.database.fetchval(stored, session_of(first)) == second.refresh_expires_at


@pytest.mark.parametrize("minutes", [14, 16])
async def test_what_identifies_an_account_changes_only_soon_after_a_log_in(
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
