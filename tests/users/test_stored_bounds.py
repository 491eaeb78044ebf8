"""Bounds of the stored data of one user, and of the changes of one transaction."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import jwt
import pytest
from pydantic import SecretStr

from postbus.bus.v1 import Event
from postbus.users.v1 import FollowChanged, FollowRequest, UnfollowRequest
from shared.access_tokens import Caller
from shared.context import Context
from shared.data.pages import Page
from shared.data.postgres_sessions import Postgres, open_postgres
from shared.errors import ServiceError
from shared.outbox.inbox import Operation
from shared.wire import decode
from tests.tokens import TokenMaker
from tests.users.conftest import Worker, until_waiting
from users import repair as repair_module
from users.account_repository import AccountRepository
from users.follow_repository import FollowRepository
from users.models import User, search_text
from users.refresh_tokens import RefreshToken
from users.repair import repair
from users.sealed_responses import open_response, seal_response
from users.session_repository import SessionRepository
from users.settings import UsersSettings
from users.token_signer import TokenSigner

Unique = Callable[[str], str]
NOW = datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The repositories of a worker, and a connection to their database."""

    postgres: Postgres
    database: asyncpg.Connection

    @property
    def accounts(self) -> AccountRepository:
        return AccountRepository(self.postgres)

    @property
    def follows(self) -> FollowRepository:
        return FollowRepository(self.postgres)

    @property
    def sessions(self) -> SessionRepository:
        return SessionRepository(self.postgres)

    async def account(self, id_: str) -> User:
        user = User(
            id=id_,
            username=id_,
            email=f"{id_}@example.com",
            password_hash="hash",  # noqa: S106  # no password
            search=id_,
            created_at=NOW,
            updated_at=NOW,
        )
        await self.accounts.add(user)
        return user

    async def counters(self, id_: str) -> tuple[int, int]:
        """Return the stored counters of followers and followed users."""
        query = "SELECT follower_count, following_count FROM users WHERE id = $1"
        return tuple(await self.database.fetchrow(query, id_))


@pytest.fixture
async def stored(worker_database: str) -> AsyncIterator[Stored]:
    database = await asyncpg.connect(worker_database)
    async with open_postgres(SecretStr(worker_database)) as postgres:
        yield Stored(postgres=postgres, database=database)
    await database.close()


def test_search_text_of_an_account_fits_its_column() -> None:
    assert len(search_text(*(f"word{number}" for number in range(100)))) == 400
    assert search_text("Ada", "Ada Lovelace") == "ada lovelace"


async def test_user_follows_at_most_5000_users(stored: Stored, unique: Unique) -> None:
    fan, star = unique("fan"), unique("star")
    for id_ in (fan, star):
        await stored.account(id_)
    await stored.database.execute(
        "INSERT INTO follows SELECT $1, 'star-' || n, now() FROM generate_series(1, 4999) n", fan
    )
    await stored.database.execute("UPDATE users SET following_count = 4999 WHERE id = $1", fan)

    last = await stored.follows.add(fan, star)
    await stored.follows.remove(fan, star)
    await stored.database.execute("UPDATE users SET following_count = 5000 WHERE id = $1", fan)
    with pytest.raises(ServiceError, match="FOLLOWS_TOO_MANY"):
        await stored.follows.add(fan, star)
    await stored.database.execute(
        "INSERT INTO follows SELECT $1, 'more-' || n, now() FROM generate_series(1, 100) n", fan
    )
    followed = await stored.follows.followed_ids(fan)
    await stored.database.execute("DELETE FROM follows WHERE follower_id = $1", fan)

    assert last.version
    assert await stored.counters(star) == (0, 0)
    assert len(followed) == 5000


async def test_follows_are_erased_500_at_a_time(stored: Stored, unique: Unique) -> None:
    gone, ann = unique("gone"), unique("ann")
    await stored.account(ann)
    await stored.database.execute(
        "INSERT INTO follows SELECT 'fan-' || n, $1, now() FROM generate_series(1, 1200) n", gone
    )
    await stored.database.execute("INSERT INTO follows VALUES ($1, $2, now())", ann, gone)
    await stored.database.execute("UPDATE users SET following_count = 1 WHERE id = $1", ann)
    left = "SELECT count(*) FROM follows WHERE followed_id = $1"

    steps = []
    for _ in range(3):
        more = await stored.follows.erase_batch(gone)
        steps.append((more, await stored.database.fetchval(left, gone)))

    assert steps == [(True, 701), (True, 201), (False, 0)]
    assert await stored.counters(ann) == (0, 0)


async def test_counters_are_exact_after_concurrent_follows_in_both_directions(
    stored: Stored, unique: Unique
) -> None:
    people = [unique("p") for _ in range(4)]
    for id_ in people:
        await stored.account(id_)
    pairs = [(one, other) for one in people for other in people if one != other]

    async with asyncio.timeout(10):
        await asyncio.gather(*(stored.follows.add(*pair) for pair in pairs * 2))
        followed = [await stored.counters(id_) for id_ in people]
        await asyncio.gather(*(stored.follows.remove(*pair) for pair in pairs * 2))

    assert followed == [(3, 3)] * 4
    assert [await stored.counters(id_) for id_ in people] == [(0, 0)] * 4


async def test_versions_of_a_follow_increase_with_each_change(
    stored: Stored, unique: Unique
) -> None:
    ann, bea = unique("ann"), unique("bea")
    for id_ in (ann, bea):
        await stored.account(id_)
    changes = []
    for change in (stored.follows.add, stored.follows.remove) * 2:
        changes += [await change(ann, bea) for _ in range(2)]

    versions = [change.version for change in changes if change.version]
    assert [bool(change.version) for change in changes] == [True, False] * 4
    assert versions == sorted(set(versions))
    assert [change.revision for change in changes] == [1, 1, 2, 2, 3, 3, 4, 4]


async def test_follow_that_changes_nothing_publishes_no_event(
    worker: Worker, unique: Unique
) -> None:
    ann, bea = unique("ann"), unique("bea")
    for name in (ann, bea):
        await worker.sign_up(name)
    token = (await worker.log_in(ann)).access_token
    events: asyncio.Queue[FollowChanged] = asyncio.Queue()

    async def receive(body: bytes) -> None:
        events.put_nowait(decode(FollowChanged, decode(Event, body).data))

    types = ["postbus.users.v1.FollowChanged"]
    subscription = await worker.bus.subscribe(types, receive, queue=unique("queue"))
    follow, unfollow = FollowRequest(username=bea), UnfollowRequest(username=bea)
    for request in (follow, follow, unfollow, unfollow, follow):
        method = type(request).__name__.removesuffix("Request")
        await worker.call(f"postbus.users.v1.UsersService.{method}", request, access_token=token)
    async with asyncio.timeout(10):
        changes = [await events.get() for _ in range(3)]
    await subscription.cancel()

    assert [change.following for change in changes] == [True, False, True]


async def test_user_has_at_most_a_hundred_sessions_and_no_expired_ones(
    stored: Stored, unique: Unique
) -> None:
    user = await stored.account(unique("ann"))
    await stored.database.execute(
        "INSERT INTO sessions SELECT $1 || lpad(n::text, 4, '0'), $2, '', 'f', 's', now(), now(),"
        " now() + CASE n WHEN 50 THEN -interval '1 s' ELSE interval '1 d' END"
        " FROM generate_series(1, 103) n",
        user.id[:20],
        user.id,
    )

    deleted = await stored.sessions.delete_surplus(user.id)

    numbers = sorted(int(id_[-4:]) for id_ in deleted)
    assert numbers == [1, 2, 3, 50]
    assert await stored.sessions.count_open(user.id) == 99


def test_refresh_token_lives_30_days_and_its_session_180() -> None:
    now = datetime.now(UTC)
    lifetimes = [
        SessionRepository.expiry(opened) - now
        for opened in (None, now, now - timedelta(days=149), now - timedelta(days=179))
    ]

    days = [timedelta(days=number) for number in (30, 30, 30, 1)]
    assert all(
        abs(lifetime - expected) < timedelta(minutes=1)
        for lifetime, expected in zip(lifetimes, days, strict=True)
    )


def test_access_token_lives_ten_minutes(tokens: TokenMaker) -> None:
    token, expires_at = TokenSigner(SecretStr(tokens.signing_key)).sign("user", "session")
    claims = jwt.decode(token, options={"verify_signature": False})

    assert claims["exp"] - claims["iat"] in (599, 600)  # the expiry has no fraction
    assert claims["exp"] == expires_at.timestamp()


def test_refresh_token_is_random_stored_as_hashes_and_read_strictly() -> None:
    token, other = RefreshToken.new(), RefreshToken.new()
    text = str(token)

    assert (len(token.family), len(token.secret)) == (16, 32)
    assert len({token.family, other.family, token.secret, other.secret, token.next().secret}) == 5
    assert token.next().family == token.family
    assert (token.family_hash, token.secret_hash) == (
        hashlib.sha256(token.family).digest(),
        hashlib.sha256(token.secret).digest(),
    )
    assert RefreshToken.read(text) == token
    for malformed in (f"{text[:9]}!{text[9:]}", f" {text}", text[:20], ""):
        assert RefreshToken.read(malformed) is None


async def test_session_is_opened_only_for_the_verified_password(
    stored: Stored, unique: Unique
) -> None:
    user = await stored.account(unique("ann"))
    opened = [await stored.sessions.open(user, "", RefreshToken.new())]
    changed = "UPDATE users SET password_version = password_version + 1 WHERE id = $1"
    await stored.database.execute(changed, user.id)
    opened.append(await stored.sessions.open(user, "", RefreshToken.new()))
    await stored.database.execute("DELETE FROM users WHERE id = $1", user.id)
    opened.append(await stored.sessions.open(user, "", RefreshToken.new()))

    assert opened == [True, False, False]


async def test_session_is_found_by_its_family_until_it_expires(
    stored: Stored, unique: Unique
) -> None:
    user, token = await stored.account(unique("ann")), RefreshToken.new()
    await stored.sessions.open(user, "", token)
    forged = RefreshToken(session_id=token.session_id, family=b"x" * 16, secret=token.secret)

    async def found(presented: RefreshToken) -> bool:
        return await stored.sessions.find_by_token(presented, time.monotonic()) is not None

    states = [await found(token), await found(token.next()), await found(forged)]
    expire = "UPDATE sessions SET expires_at = now() WHERE id = $1"
    await stored.database.execute(expire, token.session_id)
    states.append(await found(token))
    states.append(await stored.sessions.rotate(token, token.next(), sealed_response=b""))

    assert states == [True, True, False, False, False]


@pytest.mark.parametrize(("age", "days"), [(0, 30), (149, 30), (179, 1)])
async def test_stored_expiry_is_by_the_clock_of_the_database(
    stored: Stored, unique: Unique, age: int, days: int
) -> None:
    """A worker whose clock is wrong by years ends no session, and opens none without an end."""
    user, token = await stored.account(unique("ann")), RefreshToken.new()
    left = "SELECT extract(epoch FROM expires_at - now()) / 86400 FROM sessions WHERE id = $1"
    await stored.sessions.open(user, "", token)
    opened = await stored.database.fetchval(left, token.session_id)
    older = "UPDATE sessions SET created_at = now() - $2::interval, expires_at = now() + '1 h'"
    await stored.database.execute(f"{older} WHERE id = $1", token.session_id, timedelta(days=age))

    await stored.sessions.rotate(token, token.next(), sealed_response=b"")

    rotated = await stored.database.fetchval(left, token.session_id)
    assert (round(opened, 2), round(rotated, 2)) == (30, days)


async def test_session_waits_for_a_concurrent_change_of_the_password(
    stored: Stored, worker_database: str, unique: Unique
) -> None:
    user = await stored.account(unique("ann"))
    change = stored.database.transaction()
    await change.start()
    changed = "UPDATE users SET password_version = password_version + 1 WHERE id = $1"
    await stored.database.execute(changed, user.id)

    opening = asyncio.create_task(stored.sessions.open(user, "", RefreshToken.new()))
    await until_waiting(worker_database, 1)
    await change.commit()

    assert await opening is False


async def test_account_that_a_call_changes_is_locked(stored: Stored, unique: Unique) -> None:
    user, token = await stored.account(unique("ann")), RefreshToken.new()
    await stored.sessions.open(user, "", token)
    caller = Caller(user_id=user.id, session_id=token.session_id, expires_at=NOW)
    context = Context(name="test", caller=caller, deadline=time.monotonic() + 20, traceparent="")
    locked = []

    async def change() -> bytes:
        for lock in (False, True):
            await stored.accounts.get_caller(context, lock=lock)
            query = "SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE NOWAIT"
            try:
                await stored.database.execute(query, user.id)
            except asyncpg.LockNotAvailableError:
                locked.append(True)
            else:
                locked.append(False)
        return b""

    await stored.postgres.perform(Operation(key=unique("key")), change)

    assert locked == [False, True]


async def test_lists_read_one_row_more_than_their_page(stored: Stored, unique: Unique) -> None:
    word = unique("word")
    ann = await stored.account(f"{word}ann")
    for number in range(4):
        other = await stored.account(f"{word}{number}")
        await stored.follows.add(ann.id, other.id)
        await stored.follows.add(other.id, ann.id)
        await stored.sessions.open(ann, "", RefreshToken.new())
    page = Page(2, (), str)

    lists: list[Sequence[object]] = [
        await stored.accounts.search(word, page),
        await stored.accounts.search("", page),
        await stored.follows.list_followers(ann.id, page),
        await stored.follows.list_following(ann.id, page),
        await stored.sessions.list_open(ann.id, page),
    ]

    assert [len(each) for each in lists] == [3] * 5


async def test_expired_sessions_are_neither_listed_nor_counted(
    stored: Stored, unique: Unique
) -> None:
    user = await stored.account(unique("ann"))
    tokens = [RefreshToken.new() for _ in range(2)]
    for token in tokens:
        await stored.sessions.open(user, "", token)
    expire = "UPDATE sessions SET expires_at = now() - interval '1 s' WHERE id = $1"
    await stored.database.execute(expire, tokens[0].session_id)

    listed = await stored.sessions.list_open(user.id, Page(10, (), str))

    assert [session.id for session in listed] == [tokens[1].session_id]
    assert await stored.sessions.count_open(user.id) == 1


async def test_account_that_does_not_exist_is_not_followed(stored: Stored, unique: Unique) -> None:
    ann = await stored.account(unique("ann"))

    with pytest.raises(ServiceError, match="USER_NOT_FOUND"):
        await stored.follows.add(ann.id, unique("nobody"))


async def test_hash_is_not_replaced_after_the_password_was_changed(
    stored: Stored, unique: Unique
) -> None:
    user = await stored.account(unique("ann"))
    await stored.database.execute("UPDATE users SET password_hash = 'new' WHERE id = $1", user.id)

    await stored.accounts.replace_hash(user, "of the old password")

    query = "SELECT password_hash FROM users WHERE id = $1"
    assert await stored.database.fetchval(query, user.id) == "new"


def test_sealed_response_has_a_nonce_of_96_bits_of_its_own() -> None:
    token = RefreshToken.new()
    one, other = (seal_response(b"response", token, "key") for _ in range(2))

    assert len(one) == len(other) == 12 + len(b"response") + 16
    assert one[:12] != other[:12]
    assert open_response(other, token, "key") == b"response"


async def test_repair_locks_500_accounts_at_a_time(
    stored: Stored, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    lock = repair_module._lock

    async def counted(*args: Any) -> list[str]:
        ids = await lock(*args)
        batches.append(len(ids))
        return ids

    monkeypatch.setattr(repair_module, "_lock", counted)
    await stored.database.execute(
        "INSERT INTO users (id, username, email, password_hash, display_name, bio, image_url,"
        " search, follower_count, following_count, created_at, updated_at, version, revision)"
        " SELECT $1 || n, $1 || n, $1 || n, '', '', '', '', '', 0, 0, now(), now(), 1, 0"
        " FROM generate_series(1, 1001) n",
        unique("many"),
    )

    lines = [line async for line in repair(stored.postgres)]

    assert batches[:2] == [500, 500]
    assert max(batches) == 500
    assert lines[-1].startswith(f"{sum(batches)} accounts")


def test_failed_log_ins_of_an_address_are_limited_by_default() -> None:
    assert UsersSettings.model_fields["login_failures_per_address"].default == 50
