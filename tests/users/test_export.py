"""The part of an export that `users` stores."""

import time
from collections.abc import Callable

import asyncpg
from pydantic import SecretStr

from postbus.users.v1 import ExportAccountRequest
from shared.access_tokens import TokenVerifier
from shared.context import Context
from shared.data.pages import Page, Position, read_pages
from shared.data.postgres_sessions import Postgres, open_postgres
from shared.trace import new_traceparent
from tests.users.conftest import Worker
from users.account_repository import AccountRepository
from users.export_handlers import ExportHandlers
from users.follow_repository import FollowRepository, ListedUser
from users.session_repository import SessionRepository

Unique = Callable[[str], str]


async def numbers_after(page: Page) -> list[int]:
    """Return the numbers below 450 that follow a position, at most as many as the page allows."""
    first = int(page.after[0]) + 1 if page.after else 0
    return list(range(450))[first : first + page.limit]


def position(number: int) -> Position:
    return (number,)


async def test_list_is_read_completely_in_batches() -> None:
    found = [batch async for batch in read_pages(numbers_after, position, size=200)]

    assert [len(batch) for batch in found] == [200, 200, 50]
    assert [number for batch in found for number in batch] == list(range(450))


class CountedFollows(FollowRepository):
    """Records how many rows each query returns."""

    def __init__(self, postgres: Postgres) -> None:
        super().__init__(postgres)
        self.counts: list[int] = []

    async def list_following(self, user_id: str, page: Page) -> list[ListedUser]:
        found = await super().list_following(user_id, page)
        self.counts.append(len(found))
        return found


async def follow_many(database: asyncpg.Connection, user_id: str, count: int) -> None:
    """Store users that a user follows."""
    await database.execute(
        "INSERT INTO users (id, username, email, password_hash, display_name, bio, image_url,"
        " search, follower_count, following_count, version, created_at, updated_at)"
        " SELECT $1 || n, $1 || n, $1 || n || '@x', '', '', '', '', '', 0, 0, 1, now(), now()"
        " FROM generate_series(1, $2) n",
        user_id[-12:],
        count,
    )
    await database.execute(
        "INSERT INTO follows SELECT $1, $2 || n, now() FROM generate_series(1, $3) n",
        user_id,
        user_id[-12:],
        count,
    )


async def test_export_reads_follows_in_batches_of_200(
    worker: Worker, worker_database: str, verifier: TokenVerifier, unique: Unique
) -> None:
    user = (await worker.sign_up(unique("fan"))).user
    caller = verifier.verify((await worker.log_in(user.username)).access_token)
    context = Context(
        name="x", caller=caller, deadline=time.monotonic() + 20, traceparent=new_traceparent()
    )
    await follow_many(worker.database, user.id, 450)

    async with open_postgres(SecretStr(worker_database)) as postgres:
        follows = CountedFollows(postgres)
        handlers = ExportHandlers(
            accounts=AccountRepository(postgres),
            sessions=SessionRepository(postgres),
            follows=follows,
        )
        items = [item async for item in handlers.export_account(ExportAccountRequest(), context)]

    assert follows.counts == [201, 201, 50]
    assert len({item.follow.user_id for item in items[2:]}) == 450
